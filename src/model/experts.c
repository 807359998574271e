/* What families with experts share: the router with its losses and its bias, and the weights of
 * experts that are published one by one. */
#include "model/model_internal.h"

/* ---- router ----------------------------------------------------------------------------- */

/* The bias that balances without a loss: chosen with, scored without; moved after each step by
 * load. */
static Status count_load(ModelBuilder *b, const char *router, ValueId load, ValueId bias)
{
    if (!b->o.training || b->o.balance != BALANCE_BIAS) return OK;
    const char *name = arena_printf(&b->g->arena, "model.layers.%d.%s.load", b->layer, router);
    Shape shape = shape_make(1, (int64_t[]){b->config->n_experts}, (Axis[]){AXIS_EXPERTS});
    ValueId sum = graph_state(b->g, name, DTYPE_F32, shape, STATE_LOAD);
    graph_value(b->g, sum)->master = bias;
    return op_accumulate(b->g, sum, load, &sum);
}

static Status router_losses(ModelBuilder *b, RouterScore kind, ValueId logits, ValueId choice)
{
    float aux = b->o.balance == BALANCE_AUX ? b->o.aux_loss : 0;
    if (!b->o.training || b->o.purpose != MODEL_LOSS || (aux == 0 && b->o.router_z_loss == 0))
        return OK;
    ValueId loss;
    TRY(op_router_loss(b->g, logits, choice, b->weights, aux, b->o.router_z_loss, kind, &loss));
    if (value_ok(b->router_loss)) return op_add(b->g, b->router_loss, loss, &b->router_loss);
    b->router_loss = loss;
    return OK;
}

static Status router_logits(ModelBuilder *b, const char *name, ValueId x, ValueId *logits)
{
    const ModelConfig *c = b->config;
    Shape shape = shape_make(2, (int64_t[]){c->n_experts, c->embed},
                             (Axis[]){AXIS_EXPERTS, AXIS_EMBED});
    ValueId w = model_weight_f32(b, arena_printf(&b->g->arena, "%s.weight", name), shape,
                                 model_init(b), true);
    if (b->o.dtype != DTYPE_F32) TRY(op_cast(b->g, x, DTYPE_F32, &x));
    TRY(op_linear_as(b->g, x, w, DTYPE_F32, logits));
    return c->router_softcap > 0 ? op_softcap(b->g, *logits, (float)c->router_softcap, logits) : OK;
}

Status model_route(ModelBuilder *b, const char *name, RouterScore kind, ValueId x, Dispatch *d)
{
    const ModelConfig *c = b->config;
    ValueId logits, choice, load, bias = NO_VALUE;
    graph_set_scope(b->g, name);
    TRY(router_logits(b, name, x, &logits));
    if (c->expert_bias) {
        const char *full = arena_printf(&b->g->arena, "model.layers.%d.%s.expert_bias", b->layer,
                                        name);
        bias = graph_state(b->g, full, DTYPE_F32,
                           shape_make(1, &c->n_experts, (Axis[]){AXIS_EXPERTS}), STATE_BUFFER);
    }
    TRY(op_route(b->g, logits, bias, (int)c->n_experts_per_token, kind, &choice, &d->score));
    TRY(op_expert_sort(b->g, choice, c->n_experts, &d->offsets, &d->source, &d->place, &load));
    TRY(router_losses(b, kind, logits, choice));
    return c->expert_bias ? count_load(b, name, load, bias) : OK;
}

/* ---- weights ---------------------------------------------------------------------------- */

/* Working copies keep one part: they are remade as a whole, and no file names them. */
static void name_parts(ModelBuilder *b, ValueId w, const ExpertMatrices *m)
{
    Value *v = graph_value(b->g, w);
    StatePart like = v->part[0];
    size_t bytes = (size_t)(m->out * m->in) * dtype_bytes(v->dtype);
    like.shape = shape_make(2, (int64_t[]){m->out, m->in}, (Axis[]){m->out_axis, m->in_axis});
    like.whole = like.shape;
    v->n_parts = (int)b->config->n_experts * m->n_names;
    v->part = ARENA_ARRAY(&b->g->arena, StatePart, v->n_parts);
    for (int i = 0; i < v->n_parts; i++) {
        v->part[i] = like;
        v->part[i].name = arena_printf(&b->g->arena, "model.layers.%d.%s.%d.%s", b->layer,
                                       m->prefix, i / m->n_names, m->name[i % m->n_names]);
        v->part[i].offset_bytes = (size_t)i * bytes;
    }
}

ValueId model_expert_matrices(ModelBuilder *b, const ExpertMatrices *m)
{
    Arena *arena = &b->g->arena;
    Shape shape = shape_make(3, (int64_t[]){b->config->n_experts, m->n_names * m->out, m->in},
                             (Axis[]){AXIS_EXPERTS, m->out_axis, m->in_axis});
    const char *name = arena_printf(arena, "%s.*.%s", m->prefix, m->name[0]);
    for (int k = 1; k < m->n_names; k++) name = arena_printf(arena, "%s+%s", name, m->name[k]);
    ValueId w = model_weight(b, name, shape, m->init), master = graph_value(b->g, w)->master;
    name_parts(b, value_ok(master) ? master : w, m);
    return w;
}
