/* The table of commands. */
#include "cli/cli.h"

#define COMMAND(name) extern const Command command_##name;
#include "cli/list.h"
#undef COMMAND

static const Command *const commands[] = {
#define COMMAND(name) &command_##name,
#include "cli/list.h"
#undef COMMAND
};

const Command *command_at(int index)
{
    return index >= 0 && index < COUNT_OF(commands) ? commands[index] : NULL;
}
