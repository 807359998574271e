/* Graphs and programs as text, with the memory they need. */
#include "cli/show.h"
#include "pass/pass.h"
#include "train/train.h"

enum { KIND_NONE, KIND_LOSS, KIND_LOGITS, KIND_DECODE, KIND_PREFILL, KIND_STEP };

static Status build_forward(const ModelConfig *config, const ProgramFlags *f, Target target,
                            StepPrograms *out)
{
    static const ModelPurpose purposes[] = {0, MODEL_LOSS, MODEL_LOGITS, MODEL_DECODE,
                                            MODEL_PREFILL};
    bool cached = f->kind == KIND_DECODE || f->kind == KIND_PREFILL;
    Graph *graph;
    ModelOptions o = {.purpose = purposes[f->kind],
                      .batch = f->batch,
                      .seq = f->kind == KIND_DECODE ? 1 : f->seq,
                      .cache = cached ? f->seq : 0,
                      .dtype = f->dtype ? DTYPE_BF16 : DTYPE_F32,
                      .no_master = true};
    *out = (StepPrograms){.store = store_create()};
    Status status = model_build(config, o, &graph);
    if (status == OK && (status = pass_fuse(&graph, false)) != OK) graph_destroy(graph);
    if (status == OK) status = program_compile(graph, target, out->store, &out->at[0]);
    out->n = status == OK;
    if (status != OK) step_programs_destroy(out);
    return status;
}

static Status build(const ModelConfig *config, const ProgramFlags *f, Target target,
                    StepPrograms *out)
{
    if (f->kind != KIND_STEP) return build_forward(config, f, target, out);
    StepOptions o = {.micro_batch = f->batch,
                     .n_micro = 1,
                     .seq = f->seq,
                     .dtype = f->dtype ? DTYPE_BF16 : DTYPE_F32,
                     .balance = config->expert_bias ? BALANCE_BIAS : BALANCE_NONE};
    return step_programs_build(config, &o, target, out);
}

static void add_memory(const StepPrograms *p, Str *out)
{
    char size[32];
    MemoryPlan plan = session_plan(p->store, p->at, p->n);
    str_add(out, "memory:\n");
    for (int role = STATE_PARAM; role <= STATE_CACHE; role++) {
        size_t bytes = store_role_bytes(p->store, (StateRole)role);
        if (bytes)
            str_printf(out, "  %-22s %14zu bytes  %s\n", state_role_name((StateRole)role), bytes,
                       format_bytes((double)bytes, size));
    }
    str_printf(out, "  %-22s %14zu bytes  %s\n", "activations, workspace", plan.step_bytes,
               format_bytes((double)plan.step_bytes, size));
    if (plan.packed_bytes)
        str_printf(out, "  %-22s %14zu bytes  %s\n", "packed weights", plan.packed_bytes,
                   format_bytes((double)plan.packed_bytes, size));
    str_printf(out, "  %-22s %14zu bytes  %s\n", "inputs", plan.io_bytes,
               format_bytes((double)plan.io_bytes, size));
    str_printf(out, "  %-22s %14zu bytes  %s\n", "all", plan.total_bytes,
               format_bytes((double)plan.total_bytes, size));
    for (int i = 0; i < p->n; i++) {
        Cost cost = program_cost(p->at[i]);
        str_printf(out, "%s: %d instructions, %.4g GFLOP, %s read, ", p->at[i]->graph->name,
                   p->at[i]->n_instr, cost.flop * 1e-9, format_bytes(cost.read_bytes, size));
        str_printf(out, "%s written\n", format_bytes(cost.write_bytes, size));
    }
}

Status show_program(const ModelConfig *config, const ProgramFlags *flags, Str *out)
{
    Device *device;
    StepPrograms programs;
    TRY(device_create_cpu((CpuOptions){0}, &device));
    Status status = build(config, flags, device_target(device), &programs);
    if (status == OK) {
        for (int i = 0; i < programs.n; i++) {
            if (flags->dot)
                graph_dump_dot(programs.at[i]->graph, out);
            else if (flags->program)
                program_dump(programs.at[i], out);
            else
                graph_dump(programs.at[i]->graph, out);
        }
        if (flags->program) add_memory(&programs, out);
        step_programs_destroy(&programs);
    }
    device_destroy(device);
    return status;
}
