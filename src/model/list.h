/* One line a family: MODEL(name) declares model_def_<name>, defined in model/<name>.c. */
MODEL(llama)
MODEL(llama4_text)
MODEL(grok1)
MODEL(gpt)
MODEL(gpt2)
MODEL(mpt)
