/* Search over layouts in three stages: all cuts of a layer are profiled, all layouts that divide
 * are estimated from these profiles, and the best of those that seem to fit are planned as they
 * are. What is reported is planned, never estimated. */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "planner/estimate.h"

/* Fewer columns of a sequence on a rank are not worth gathering keys for; more tokens in a
 * micro-batch make products no faster. */
enum {
    MAX_TP = 16,
    MAX_CP = 64,
    MAX_MICRO_BATCH = 8,
    MAX_STAGES_PER_RANK = 8,
    MIN_COLUMNS = 1024,
    MAX_TOKENS = 16384,
    ROUND = 16,
    MORE_ROUNDS = 8,
    FIRST_OF_KIND = 2,
    MOST_LEAVES = 1 << NODE_MAX_OUT /* of a rank, in canonical mode */
};

/* Estimates may be wrong by so much: what seems to need more is not tried. */
static const double memory_margin = 1.15;
/* Of two neighbours on the front of time and memory the slower one needs less than this of the
 * other's memory. */
static const double front_step = 0.93;

typedef struct Candidate {
    LayerCut cut;
    Spread spread;
    int64_t batch;
    Estimate estimate;
} Candidate;

/* By how much plans of one kind need more memory than was estimated; 0: none was made yet. */
typedef struct Lesson {
    LayerCut cut;
    bool pipeline, sharded;
    double ratio;
    int chosen; /* before it is known */
} Lesson;

/* Layouts that cut a layer in one way; a thread at a time. */
typedef struct Found {
    VEC(Candidate) candidate;
    int64_t n_layouts;
} Found;

typedef struct Search {
    const RunConfig *config;
    const ModelConfig *model;
    const Cluster *cluster;
    const SearchOptions *options;
    VEC(LayerCut) cut;
    Profile *profile; /* [cuts] */
    bool *known;      /* [cuts]: the profile is from an earlier search */
    Found *found;     /* [cuts] */
    VEC(Candidate) candidate;
    size_t limit_bytes;
    int64_t n_layouts;
    bool *planned;  /* [candidates] */
    size_t *chosen; /* [candidates]: those of this round */
    size_t n_chosen;
    Plan *plan; /* [chosen] */
    Status *made;
    VEC(Lesson) lesson;
    size_t next; /* that no thread has taken yet */
    pthread_mutex_t lock;
} Search;

/* ---- work for threads ------------------------------------------------------------------- */

typedef struct Worker {
    Search *search;
    void (*work)(Search *search, size_t i);
    size_t n;
} Worker;

static void *take_turns(void *at)
{
    Worker *w = at;
    for (;;) {
        pthread_mutex_lock(&w->search->lock);
        size_t i = w->search->next++;
        pthread_mutex_unlock(&w->search->lock);
        if (i >= w->n) return NULL;
        w->work(w->search, i);
    }
}

/* work(i) for i below n, on all threads. */
static void run_all(Search *s, size_t n, void (*work)(Search *search, size_t i))
{
    Worker w = {s, work, n};
    pthread_t thread[64];
    int n_threads = 0, wanted = s->options->threads > 0 ? s->options->threads : cpu_count();
    s->next = 0;
    while (n_threads + 1 < wanted && n_threads < COUNT_OF(thread) &&
           !pthread_create(&thread[n_threads], NULL, take_turns, &w))
        n_threads++;
    take_turns(&w);
    for (int i = 0; i < n_threads; i++) pthread_join(thread[i], NULL);
}

/* ---- cuts of a layer -------------------------------------------------------------------- */

static bool divides(const Search *s, LayerCut cut)
{
    RunConfig c = *s->config;
    c.parallel.tp = cut.tp;
    c.parallel.ep = cut.ep;
    c.parallel.fold_experts = cut.folds;
    if (c.train.seq % (2 * cut.cp) && cut.cp > 1) return false;
    return train_check_divides(&c, s->model) == OK;
}

static void list_recomputes(Search *s, LayerCut cut)
{
    static const RunRecompute recompute[] = {RUN_RECOMPUTE_NONE, RUN_RECOMPUTE_SELECTIVE,
                                             RUN_RECOMPUTE_FULL};
    if (cut.cp > 1 && s->config->train.seq / cut.cp < MIN_COLUMNS) return;
    if (cut.micro_batch > 1 && cut.micro_batch * s->config->train.seq / cut.cp > MAX_TOKENS) return;
    if (!divides(s, cut)) return;
    for (int r = 0; r < COUNT_OF(recompute); r++) {
        cut.recompute = recompute[r];
        cut.splits = false;
        VEC_PUSH(&s->cut, cut);
        cut.splits = true; /* what is made again for B would be kept for W */
        if (cut.recompute == RUN_RECOMPUTE_NONE) VEC_PUSH(&s->cut, cut);
    }
}

static void list_cuts(Search *s)
{
    int64_t devices = s->options->devices, experts = s->model->n_experts,
            domain = s->cluster->node.link_domain > 1 ? s->cluster->node.link_domain : 1;
    for (int64_t tp = 1; tp <= min_i64(MAX_TP, domain); tp *= 2)
        for (int64_t cp = 1; cp <= MAX_CP && tp * cp <= devices; cp *= 2)
            for (int64_t ep = 1; ep <= max_i64(1, experts) && tp * cp * ep <= devices; ep *= 2)
                for (int64_t micro = 1; micro <= MAX_MICRO_BATCH; micro *= 2) {
                    LayerCut cut = {.tp = tp, .cp = cp, .ep = ep, .micro_batch = micro};
                    list_recomputes(s, cut);
                    cut.folds = true;
                    if (experts && tp > 1) list_recomputes(s, cut);
                }
}

static bool same_cut(const LayerCut *a, const LayerCut *b)
{
    return a->tp == b->tp && a->cp == b->cp && a->ep == b->ep && a->micro_batch == b->micro_batch &&
           a->recompute == b->recompute && a->splits == b->splits && a->folds == b->folds;
}

struct ProfileStore {
    VEC(Profile) profile;
};

ProfileStore *profile_store_create(void) { return xcalloc(1, sizeof(ProfileStore)); }

void profile_store_destroy(ProfileStore *store)
{
    if (!store) return;
    VEC_FREE(&store->profile);
    free(store);
}

static void recall_profiles(Search *s)
{
    const ProfileStore *store = s->options->profiles;
    for (size_t i = 0; i < s->cut.n; i++)
        for (size_t k = 0; store && k < store->profile.n && !s->known[i]; k++)
            if (same_cut(&store->profile.at[k].cut, &s->cut.at[i])) {
                s->profile[i] = store->profile.at[k];
                s->known[i] = true;
            }
}

static void keep_profiles(Search *s)
{
    ProfileStore *store = s->options->profiles;
    for (size_t i = 0; i < s->cut.n && store; i++)
        if (!s->known[i]) VEC_PUSH(&store->profile, s->profile[i]);
}

static void profile_one(Search *s, size_t i)
{
    if (s->known[i]) return;
    if (profile_make(s->config, s->model, s->cluster, s->cut.at[i], &s->profile[i]) != OK)
        s->profile[i] = (Profile){.cut = s->cut.at[i]};
}

static void make_profiles(Search *s)
{
    s->profile = xcalloc(s->cut.n + 1, sizeof *s->profile);
    s->known = xcalloc(s->cut.n + 1, sizeof *s->known);
    recall_profiles(s);
    run_all(s, s->cut.n, profile_one);
    keep_profiles(s);
}

/* ---- layouts ---------------------------------------------------------------------------- */

typedef struct ScheduleChoice {
    const char *name;
    int64_t virtual_stages;
} ScheduleChoice;

static int64_t cut_ranks(const LayerCut *cut) { return cut->tp * cut->cp * cut->ep; }

static void consider(const Search *s, const Profile *p, Spread spread)
{
    Found *found = &s->found[p - s->profile];
    if (!strcmp(spread.schedule, "dualpipev") && spread.n_micro < 2 * spread.pp) return;
    found->n_layouts++;
    Mesh mesh = {.size = {[MESH_PP] = (int)spread.pp,
                          [MESH_DP] = (int)spread.dp,
                          [MESH_FSDP] = (int)spread.fsdp,
                          [MESH_EP] = (int)p->cut.ep,
                          [MESH_CP] = (int)p->cut.cp,
                          [MESH_TP] = (int)p->cut.tp}};
    Sim sim;
    if (sim_init(s->cluster, &mesh, &sim) != OK) return;
    int64_t batch = spread.n_micro * p->cut.micro_batch * p->cut.ep * spread.fsdp * spread.dp;
    Candidate c = {p->cut, spread, batch, estimate_layout(&sim, p, &spread, s->model->n_layers)};
    c.estimate.step_s /= (double)batch; /* of one sequence: batches differ */
    if (c.estimate.bytes <= memory_margin * (double)s->limit_bytes) VEC_PUSH(&found->candidate, c);
}

static int64_t common_divisor(int64_t a, int64_t b) { return b ? common_divisor(b, a % b) : a; }

/* At most so many times `ranks`: all devices, or whole nodes of which few are left idle; else 0. */
static int64_t usable_times(const Search *s, int64_t ranks, int64_t most)
{
    int64_t all = s->options->devices, node = s->cluster->node.devices,
            together = node / common_divisor(node, ranks);
    if (ranks * most == all) return most;
    int64_t times = most / together * together;
    return (double)(ranks * times) >= (1 - SEARCH_IDLE) * (double)all ? times : 0;
}

/* A canonical step sums a power of two of leaves, so replicas and micro-batches are powers too. */
static int64_t summable(const Search *s, int64_t n)
{
    if (!s->config->train.canonical || n < 1) return n;
    return (int64_t)1 << (63 - __builtin_clzll((unsigned long long)n));
}

/* As many replicas as the devices hold, each with as many micro-batches as the batch leaves it; or
 * fewer replicas, where the batch then gives each one micro-batch more: with yet fewer the same
 * batch only takes longer. */
static void consider_replicas(const Search *s, const Profile *p, Spread spread)
{
    int64_t ranks = cut_ranks(&p->cut) * spread.pp * spread.fsdp,
            sequences = s->options->max_batch / (p->cut.micro_batch * p->cut.ep * spread.fsdp),
            most = s->options->devices / ranks;
    for (int i = 0; i < (s->config->train.canonical ? 1 : 2); i++) {
        spread.dp = usable_times(s, ranks, summable(s, most));
        if (spread.dp == 0 || spread.dp != summable(s, spread.dp)) return;
        spread.n_micro = summable(s, sequences / spread.dp);
        if (s->config->train.canonical) spread.n_micro = min_i64(spread.n_micro, MOST_LEAVES);
        for (spread.zero = 0; spread.zero <= 2 && spread.n_micro; spread.zero++)
            if (!spread.zero || (spread.dp > 1 && spread.fsdp == 1)) consider(s, p, spread);
        most = sequences / (spread.n_micro + 1);
    }
}

static void consider_schedule(const Search *s, const Profile *p, int64_t pp,
                              ScheduleChoice schedule)
{
    int64_t replicas = s->options->devices / (pp * cut_ranks(&p->cut));
    for (int64_t fsdp = 1; fsdp <= replicas; fsdp *= 2)
        consider_replicas(s, p,
                          (Spread){.pp = pp,
                                   .fsdp = fsdp,
                                   .virtual_stages = schedule.virtual_stages,
                                   .schedule = schedule.name});
}

static void consider_pipelines(const Search *s, const Profile *p)
{
    int64_t most = s->options->devices / cut_ranks(&p->cut), layers = s->model->n_layers;
    for (int64_t pp = 1; pp <= min_i64(most, layers); pp++) {
        static const ScheduleChoice split[] = {{"zb-h1", 1}, {"zb-v", 2}, {"dualpipev", 2}};
        for (int i = 0; i < COUNT_OF(split) && p->cut.splits && pp > 1; i++)
            if (pp * split[i].virtual_stages <= layers) consider_schedule(s, p, pp, split[i]);
        if (p->cut.splits) continue;
        consider_schedule(s, p, pp, (ScheduleChoice){"1f1b", 1});
        for (int64_t v = 2; pp > 1 && v <= MAX_STAGES_PER_RANK && pp * v <= layers; v++)
            if (layers % (pp * v) == 0)
                consider_schedule(s, p, pp, (ScheduleChoice){"interleaved", v});
    }
}

static void consider_cut(Search *s, size_t i)
{
    if (s->profile[i].good) consider_pipelines(s, &s->profile[i]);
}

/* In the order of the cuts, whichever thread found them. */
static void gather_candidates(Search *s)
{
    for (size_t i = 0; i < s->cut.n; i++) {
        Found *f = &s->found[i];
        s->n_layouts += f->n_layouts;
        for (size_t k = 0; k < f->candidate.n; k++) VEC_PUSH(&s->candidate, f->candidate.at[k]);
        VEC_FREE(&f->candidate);
    }
}

static int by_time(const void *a, const void *b)
{
    const Candidate *x = a, *y = b;
    return (x->estimate.step_s > y->estimate.step_s) - (x->estimate.step_s < y->estimate.step_s);
}

/* ---- plans ------------------------------------------------------------------------------ */

static RunConfig config_of(const Search *s, const Candidate *c)
{
    RunConfig config = *s->config;
    RunParallel *p = &config.parallel;
    p->tp = c->cut.tp;
    p->cp = c->cut.cp;
    p->ep = c->cut.ep;
    p->fold_experts = c->cut.folds;
    p->dp = c->spread.dp;
    p->fsdp = c->spread.fsdp;
    p->pp = c->spread.pp;
    p->zero = c->spread.zero;
    p->schedule = c->spread.schedule;
    p->virtual_stages = c->spread.pp > 1 ? c->spread.virtual_stages : 0;
    config.train.batch = c->batch;
    config.train.micro_batch = c->cut.micro_batch;
    config.train.recompute = c->cut.recompute;
    return config;
}

static void plan_one(Search *s, size_t i)
{
    RunConfig config = config_of(s, &s->candidate.at[s->chosen[i]]);
    s->made[i] = plan_make_of(&config, s->model, s->cluster, &(PlanOptions){.jitter = -1},
                              &s->plan[i]);
}

static double time_of_token(const Plan *p) { return p->time.step_s / p->tokens; }

static int by_rate(const void *a, const void *b)
{
    double x = time_of_token(a), y = time_of_token(b);
    return (x > y) - (x < y);
}

static Lesson *lesson_of(Search *s, const Candidate *c)
{
    for (size_t i = 0; i < s->lesson.n; i++) {
        Lesson *l = &s->lesson.at[i];
        if (same_cut(&l->cut, &c->cut) && l->pipeline == (c->spread.pp > 1) &&
            l->sharded == (c->spread.fsdp > 1))
            return l;
    }
    Lesson first = {.cut = c->cut, .pipeline = c->spread.pp > 1, .sharded = c->spread.fsdp > 1};
    VEC_PUSH(&s->lesson, first);
    return &s->lesson.at[s->lesson.n - 1];
}

static void learn(Search *s, const Candidate *c, const Plan *plan)
{
    Lesson *l = lesson_of(s, c);
    l->ratio = fmax(l->ratio, (double)plan->memory[plan->largest].total / c->estimate.bytes);
}

/* What was planned of its kind says that it would not fit; or others of it say so soon. */
static bool hopeless(const Search *s, const Candidate *c, const Lesson *l)
{
    return l->ratio > 0 ? c->estimate.bytes * l->ratio > (double)s->limit_bytes
                        : l->chosen >= FIRST_OF_KIND;
}

static void choose(Search *s, size_t i)
{
    s->planned[i] = true;
    s->chosen[s->n_chosen++] = i;
    lesson_of(s, &s->candidate.at[i])->chosen++;
}

/* The fastest that are not planned yet and not hopeless. */
static void choose_best(Search *s, size_t most)
{
    for (size_t i = 0; i < s->candidate.n && s->n_chosen < most; i++) {
        const Candidate *c = &s->candidate.at[i];
        if (!s->planned[i] && !hopeless(s, c, lesson_of(s, c))) choose(s, i);
    }
}

/* Those that need less memory than all faster ones. */
static void choose_front(Search *s, size_t most)
{
    double least = (double)INFINITY;
    for (size_t i = 0; i < s->candidate.n && s->n_chosen < most; i++) {
        double bytes = s->candidate.at[i].estimate.bytes;
        if (bytes < front_step * least && !s->planned[i]) choose(s, i);
        least = fmin(least, bytes);
    }
}

static void plan_chosen(Search *s, SearchResult *out)
{
    s->plan = xcalloc(s->n_chosen + 1, sizeof *s->plan);
    s->made = xcalloc(s->n_chosen + 1, sizeof *s->made);
    run_all(s, s->n_chosen, plan_one);
    out->plan = xrealloc(out->plan, ((size_t)out->n + s->n_chosen + 1) * sizeof *out->plan);
    for (size_t i = 0; i < s->n_chosen; i++) {
        if (s->made[i] != OK) continue;
        out->n_simulated++;
        learn(s, &s->candidate.at[s->chosen[i]], &s->plan[i]);
        if (s->plan[i].fits)
            out->plan[out->n++] = s->plan[i];
        else
            plan_deinit(&s->plan[i]);
    }
    free(s->plan);
    free(s->made);
    s->n_chosen = 0;
}

/* The best estimates become plans, in rounds: what one round says of memory, the next one knows.
 * Where few fit, more are tried. */
static void make_plans(Search *s, SearchResult *out)
{
    size_t wanted = (size_t)s->options->simulate, most = MORE_ROUNDS * wanted, n = 0;
    if (s->candidate.n) qsort(s->candidate.at, s->candidate.n, sizeof *s->candidate.at, by_time);
    s->planned = xcalloc(s->candidate.n + 1, sizeof *s->planned);
    s->chosen = xcalloc(s->candidate.n + 1, sizeof *s->chosen);
    while (n < wanted || (n < most && out->n <= (int)wanted / 8)) {
        size_t round = wanted - n < ROUND ? wanted - n : ROUND;
        choose_best(s, n < wanted ? round : ROUND);
        if (!s->n_chosen) break;
        n += s->n_chosen;
        plan_chosen(s, out);
    }
    choose_front(s, (size_t)s->options->front);
    plan_chosen(s, out);
    if (out->n) qsort(out->plan, (size_t)out->n, sizeof *out->plan, by_rate);
    free(s->planned);
    free(s->chosen);
    VEC_FREE(&s->lesson);
}

static Status search(Search *s, SearchResult *out)
{
    list_cuts(s);
    make_profiles(s);
    s->found = xcalloc(s->cut.n + 1, sizeof *s->found);
    run_all(s, s->cut.n, consider_cut);
    gather_candidates(s);
    out->n_layouts = s->n_layouts;
    out->n_estimated = (int64_t)s->candidate.n;
    make_plans(s, out);
    if (out->n) return OK;
    if (s->n_layouts == 0)
        return fail(ERR_REFUSED,
                    "no layout of %lld devices divides this model with at most %lld sequences in a "
                    "step; take fewer devices or a larger batch",
                    (long long)s->options->devices, (long long)s->options->max_batch);
    char limit[32];
    return fail(ERR_REFUSED,
                "none of %lld layouts fits into %s on each of %lld devices; take more devices, or "
                "train.seq below %lld",
                (long long)s->n_layouts, format_bytes((double)s->limit_bytes, limit),
                (long long)s->options->devices, (long long)s->config->train.seq);
}

Status plan_search(const RunConfig *config, const Cluster *cluster, const SearchOptions *options,
                   SearchResult *out)
{
    double start = clock_s();
    ModelConfig model;
    const MemoryCurve *m = &cluster->device.memory;
    *out = (SearchResult){0};
    TRY(plan_read_model(config, &model));
    Search s = {.config = config,
                .model = &model,
                .cluster = cluster,
                .options = options,
                .lock = PTHREAD_MUTEX_INITIALIZER};
    s.limit_bytes = config->train.memory_limit ? (size_t)config->train.memory_limit
                                               : (size_t)fmax(0, m->bytes - m->reserved_bytes);
    Status status = search(&s, out);
    free(s.profile);
    free(s.known);
    free(s.found);
    VEC_FREE(&s.cut);
    VEC_FREE(&s.candidate);
    pthread_mutex_destroy(&s.lock);
    model_config_deinit(&model);
    out->seconds = clock_s() - start;
    if (status != OK) search_result_deinit(out);
    return status;
}

void search_result_deinit(SearchResult *result)
{
    for (int i = 0; i < result->n; i++) plan_deinit(&result->plan[i]);
    free(result->plan);
    result->plan = NULL;
    result->n = 0;
}

void search_text(const SearchResult *r, int most, Str *out)
{
    str_printf(out,
               "search   %lld layouts divide, %lld seem to fit, the best %d were simulated, %d of "
               "them fit: %.1f s\n",
               (long long)r->n_layouts, (long long)r->n_estimated, r->n_simulated, r->n,
               r->seconds);
    str_add(out, "           tokens/s    MFU   memory  layout\n");
    for (int i = 0; i < r->n && i < most; i++) {
        const Plan *p = &r->plan[i];
        const RunParallel *l = &p->config.parallel;
        static const char *const recompute[] = {"", " selective", " full"};
        char rate[32], bytes[32];
        str_printf(out, "         %10s %5.1f%% %8s  tp%lld cp%lld ep%lld fsdp%lld dp%lld pp%lld",
                   format_count(p->tokens_per_s, rate), 100 * p->mfu,
                   format_bytes((double)p->memory[p->largest].total, bytes), (long long)l->tp,
                   (long long)l->cp, (long long)l->ep, (long long)l->fsdp, (long long)l->dp,
                   (long long)l->pp);
        if (l->pp > 1) str_printf(out, " %s@%lld", l->schedule, (long long)l->virtual_stages);
        str_printf(out, " zero%lld micro%lld x %lld%s%s", (long long)l->zero,
                   (long long)p->config.train.micro_batch, (long long)run_n_micro(&p->config),
                   recompute[p->config.train.recompute], l->fold_experts ? " folded" : "");
        if (p->ranks < p->devices)
            str_printf(out, ", %lld idle", (long long)(p->devices - p->ranks));
        str_add(out, "\n");
    }
}
