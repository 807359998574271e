/* Every command, in the order of the help. A line names the constant command_NAME of a file. */
COMMAND(generate)
COMMAND(chat)
COMMAND(logits)
COMMAND(tokenizer_encode)
COMMAND(tokenizer_decode)
COMMAND(tokenizer_inspect)
COMMAND(help)
