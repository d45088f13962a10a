"""Files of XTuner: its configs read without running them, its checkpoints turned into PEFT adapters."""
