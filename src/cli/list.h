/* Every command, in the order of the help. A line names the constant command_NAME of a file. */
COMMAND(help)
