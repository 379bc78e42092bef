"""The benchmark suite: our engine against transformers, PEFT, TRL, vLLM and the machine's own limits."""
