/* infer: a trained model at work: logits of given tokens, and new tokens.
 *
 * What it is.   InferModel (a model directory, opened), Infer (its weights loaded with the programs
 *               that
 *               were asked for), slots with key/value caches, the sampler, generation.
 * Depends on.   base, tensor, graph, program, device, model, ckpt, weights, text; jansson
 * Owns.         An InferModel owns configuration, tokenizer and opened files. An Infer owns device,
 *               store, programs and session, and borrows the InferModel.
 * Invariants.   Nothing is allocated for tensors before the plan was found to fit. The programs
 *               share
 *               one set of weights and caches. The logits after a token are those of the training
 *               graph at its position, however the tokens before it were cut into pieces. A sampled
 *               token is a pure function of logits, options and (seed, position).
 * Use:
 *     TRY(infer_model_open("runs/demo", &model));
 *     TRY(infer_create(&model, (InferOptions){.batch = 1, .context = 512}, &infer));
 *     GenerateRequest request = {.prompt = ids.at, .n_prompt = ids.n, .max_tokens = 100, .sampler =
 *     model.sampler};
 *     TRY(infer_generate(infer, &request, 1, &stats));
 *     TRY(tokenizer_decode(model.tokenizer, request.tokens.at, request.tokens.n, &text));
 */
#ifndef INFER_INFER_H
#define INFER_INFER_H

#include "device/device.h"
#include "model/model.h"
#include "pass/pass.h"
#include "text/text.h"
#include "weights/weights.h"

/* ---- sampler ---------------------------------------------------------------------------- */

/* Applied in this order: temperature; the top_k most likely; of those the smallest set, most likely
 * first, whose mass before its last token is at most top_p; of those the ones at least min_p times
 * as likely as the first. Equal probabilities: the lower id first. */
typedef struct SamplerOptions {
    double temperature; /* 0: the most likely token, the lowest id among equals */
    int64_t top_k;      /* 0: all */
    double top_p;       /* 1: all */
    double min_p;       /* 0: all */
    uint64_t seed;
} SamplerOptions;

/* Scratch for one vocabulary; one per thread. */
typedef struct Sampler Sampler;
Sampler *sampler_create(int64_t vocab);
void sampler_destroy(Sampler *sampler);
Status sampler_check(const SamplerOptions *options);
/* logits [vocab]. Fails when no logit is finite. */
Status sampler_draw(Sampler *sampler, const SamplerOptions *options, const float *logits,
                    uint64_t position, int32_t *id);

/* ---- a model on disk -------------------------------------------------------------------- */

enum { INFER_MAX_STOPS = 16 };

typedef struct InferModel {
    char *path; /* the directory that was chosen */
    ModelConfig config;
    Tokenizer *tokenizer; /* NULL where the directory has none */
    Weights *weights;     /* NULL: at random, from seed */
    const Ckpt *ckpt;     /* that the weights come from; NULL: none */
    uint64_t seed;
    int32_t stop[INFER_MAX_STOPS]; /* end of text, of a turn, of a message */
    int n_stop;
    SamplerOptions sampler; /* of generation_config.json, else temperature 0.6, top_p 0.9 */
} InferModel;

/* A Hugging Face directory, one in Meta's layout, a checkpoint of ours, a run's directory or its
 * ckpt directory (the newest good checkpoint of it). Reads headers, not weights; a checkpoint of
 * ours is verified by hash. */
Status infer_model_open(const char *path, InferModel *model);
/* A preset with weights at random: for benchmarks and tests. */
Status infer_model_preset(const char *preset, uint64_t seed, InferModel *model);
void infer_model_deinit(InferModel *model);
/* What most of its weights are stored as: bf16 for all types of 16 bits and less, else f32. */
DType infer_model_dtype(const InferModel *model);

/* ---- loaded ----------------------------------------------------------------------------- */

typedef struct InferOptions {
    bool dtype_set; /* false: infer_model_dtype */
    DType dtype;    /* f32 or bf16, of weights and activations */
    int threads;    /* 0: all cores */
    DeviceKind device;
    bool tune;                 /* CpuOptions.tune */
    size_t memory_limit_bytes; /* 0: what is available now */
    int64_t logits_tokens;     /* > 0: infer_logits can be called with up to this many */
    int64_t score_tokens; /* > 0: infer_score can be called with sequences of up to this many */
    int64_t score_rows;   /* of so many tokens, run at once; 0: 1 */
    int64_t batch;        /* > 0: slots, sequences that grow together */
    int64_t context;      /* positions of a slot's cache; 0: all that the model can */
    int64_t prefill;      /* tokens of a piece of a prompt; 0: 64. As many pieces are taken at once
                             as there are slots, up to 8, of one slot's prompt or of several */
    int64_t page_tokens;  /* positions of a page of keys and values; 0: 16 */
    int64_t cache_tokens; /* positions of all slots that there are pages for; 0: as many as all can
                             have. Layers that attend in chunks have pages for a chunk of each slot
                             and no more; where all do, this has no effect */
    /* Several ranks may share the model's weights, caches and work. Each of them then creates an
     * Infer,
     * and all make the
     * same calls with the same arguments; each gets every answer. Slots and rows are dealt out
     * along dp, fsdp and ep. */
    Comm *world;    /* this rank among them; NULL: one rank does all */
    Layout layout;  /* sizes of the mesh; this rank's place in it follows */
    int ranks_here; /* in this process or on this host, which share its cores and memory; 0: 1 */
} InferOptions;

typedef struct InferPlan {
    DType dtype;
    int64_t context;
    size_t weight_bytes, cache_bytes, step_bytes, io_bytes, total_bytes;
} InferPlan;

typedef struct Infer Infer;

/* What infer_create would allocate. */
Status infer_plan(const InferModel *model, const InferOptions *options, InferPlan *plan);
/* ERR_REFUSED, with what would make it fit, when it does not. */
Status infer_create(const InferModel *model, InferOptions options, Infer **infer);
void infer_destroy(Infer *infer);
InferPlan infer_planned(const Infer *infer);
const char *infer_device_text(const Infer *infer);

/* Logits [n, vocab] f32 after each of the n tokens, computed by the graph that training uses; valid
 * until the next call. */
Status infer_logits(Infer *infer, const int32_t *ids, int64_t n, const float **logits);

/* A sequence whose tokens' likelihoods are wanted. */
typedef struct ScoreSequence {
    const int32_t *ids;
    int64_t n;
    float *nll; /* [n]: -ln p(ids[i] | ids[0..i)); nll[0] is 0, as nothing comes before it */
} ScoreSequence;
/* Packed into rows, several sequences in one where they fit, run as often as it takes: the logits
 * are never held. The result does not depend on what is scored together, beyond rounding. */
Status infer_score(Infer *infer, const ScoreSequence *sequences, int64_t n);

/* ---- slots ------------------------------------------------------------------------------ */

typedef struct SlotTokens {
    int slot;
    const int32_t *ids;
    int64_t n; /* at least 1 */
} SlotTokens;

/* Tokens that the slot holds; forgets those from `length` on, or from an earlier one where keys
 * that the next token sees are gone (of chunks long past): then the rest must be fed again. */
int64_t infer_length(const Infer *infer, int slot);
void infer_truncate(Infer *infer, int slot, int64_t length);
/* Slot `to` forgets what it holds and begins with the first `length` tokens of slot `from`, whose
 * pages both read from now on; each goes on in pages of its own. Returns how many it has of them:
 * fewer where keys are gone, none where another rank holds `from`. */
int64_t infer_share(Infer *infer, int to, int from, int64_t length);
/* Appends tokens to slots (each at most once); logits[i] [vocab] are those after feed[i]'s last
 * token, valid until the next call. A slot that would grow beyond the context is ERR_REFUSED, and
 * so are tokens for which there are too few pages; nothing has changed then. */
Status infer_feed(Infer *infer, const SlotTokens *feed, int n, const float **logits);

/* ---- generation ------------------------------------------------------------------------- */

typedef enum GenerateEnd {
    GENERATE_STOP,      /* the model said so */
    GENERATE_LENGTH,    /* max_tokens */
    GENERATE_CONTEXT,   /* the cache is full */
    GENERATE_CANCELLED, /* on_token said so */
} GenerateEnd;
const char *generate_end_name(GenerateEnd end); /* "stop", "length", "context", "cancelled" */

typedef struct GenerateRequest {
    const int32_t *prompt; /* appended to what the slot holds */
    int64_t n_prompt;
    int64_t max_tokens;
    SamplerOptions sampler;
    /* Called for each token made, but not for the stop; false ends the request. May be NULL. */
    bool (*on_token)(void *context, int32_t id);
    void *context;
    /* results */
    IdVec tokens; /* those made, without the stop; the caller frees it */
    GenerateEnd end;
} GenerateRequest;

typedef struct GenerateStats {
    int64_t prompt_tokens, made_tokens;
    int64_t shared_tokens;   /* of prompts, whose keys and values another's served for */
    double prompt_s, made_s; /* with several: runs that took in prompts, too, count as prompt_s */
} GenerateStats;

/* Request i continues slot i. Of several ranks the first calls on_token. The slot then holds the
 * prompt and all tokens made but the last one. */
Status infer_generate(Infer *infer, GenerateRequest *requests, int n, GenerateStats *stats);
/* Any number of requests, each in an empty slot as one becomes free; all slots are empty then. What
 * comes of a request does not depend on the others, to the bit. Prompts that begin alike are
 * computed once. A request whose pages could not fit is ERR_REFUSED, before any is begun. */
Status infer_generate_all(Infer *infer, GenerateRequest *requests, int64_t n, GenerateStats *stats);

#endif
