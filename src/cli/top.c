/* What happens around a command: parsing, the one line of an error, exit codes, interrupts. */
#include "cli/cli.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#include "cli/ranks.h"

/* Exit codes of a status: 2 wrong usage, 3 refused by a check, 75 interrupted, 1 all others. */
static int exit_code(Status status)
{
    switch (status) {
    case OK: return 0;
    case ERR_ARG: return 2;
    case ERR_REFUSED: return 3;
    case ERR_CANCELLED: return 75;
    default: return 1;
    }
}

static Status run_line(const ParsedLine *line)
{
    Str text = {0};
    if (line->version) {
        printf("drover %s\n", drover_version());
    } else if (line->help) {
        if (line->command)
            help_command(line->command, &text);
        else if (line->operands.n == 0 || !help_group(line->operands.at[0], &text))
            help_all(&text);
        fputs(text.at, stdout);
        str_deinit(&text);
    } else {
        return line->command->run(line->options, line->operands);
    }
    return OK;
}

int cli_main(int argc, const char *const *argv)
{
    Arena arena = {0};
    ParsedLine line;
    Status status = cli_parse(&arena, argc, argv, &line);
    if (status == OK) status = run_line(&line);
    errno = 0;
    if (fflush(stdout) || ferror(stdout)) {
        Status lost = fail(ERR_IO, "cannot write to standard output: %s",
                           strerror(errno ? errno : EIO));
        if (status == OK) status = lost;
    }
    if (status != OK) {
        ranks_wait_turn();
        log_error("%s", status_message());
    }
    arena_deinit(&arena);
    return exit_code(status);
}

/* ---- interrupts ------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupted;

static void on_signal(int signal_number)
{
    interrupted = 1;
    signal(signal_number, SIG_DFL); /* who asks twice gets it at once */
}

void cli_catch_interrupts(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

bool cli_interrupted(void) { return interrupted; }

void cli_clear_interrupt(void)
{
    interrupted = 0;
    cli_catch_interrupts();
}
