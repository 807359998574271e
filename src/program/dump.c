/* A program as text: one instruction a line with where everything lies. */
#include "program/program.h"

static void operand_text(const Operand *o, Str *out)
{
    static const char region[] = {'-', 'S', 't', 'i', 'h'};
    char shape[SHAPE_TEXT];
    if (o->region == REGION_NONE) {
        str_add(out, "-");
        return;
    }
    str_printf(out, "%c+%zu %s[%s]", region[o->region], o->offset, dtype_name(o->dtype),
               shape_text(&o->shape, shape));
    if (!stride_is_contiguous(&o->shape, o->stride)) str_add(out, "/strided");
}

void program_dump(const Program *p, Str *out)
{
    str_printf(out, "program %s for %s, %d threads: step %zu bytes (live %zu), io %zu bytes\n",
               p->graph->name, isa_name(p->target.isa), p->target.threads, p->step_bytes,
               p->live_bytes, p->io_bytes);
    for (int i = 0; i < p->n_instr; i++) {
        const Instr *instr = &p->instr[i];
        for (int phase = 0; phase < PHASES; phase++)
            if (i == p->phase_begin[phase] && p->phase_begin[phase + 1] > i)
                str_printf(out, "%s:\n", phase_name((Phase)phase));
        str_printf(out, "  %4d ", i);
        for (int k = 0; k < instr->node->n_out; k++) {
            str_add(out, k ? ", " : "");
            operand_text(&instr->out[k], out);
        }
        str_printf(out, " = %s(", instr->op->name);
        for (int k = 0; k < instr->node->n_in; k++) {
            str_add(out, k ? ", " : "");
            operand_text(&instr->in[k], out);
        }
        str_add(out, ")");
        if (instr->workspace_bytes)
            str_printf(out, " workspace t+%zu %zu bytes", instr->workspace_offset,
                       instr->workspace_bytes);
        if (instr->node->name) str_printf(out, "  # %s", instr->node->name);
        if (instr->node->layer >= 0) str_printf(out, " layer %d", instr->node->layer);
        str_add(out, "\n");
    }
    str_add(out, "largest at the peak:\n");
    for (int i = 0; i < p->n_top; i++)
        str_printf(out, "  %12zu  %s\n", p->top[i].bytes, p->top[i].what);
}
