"""What a step costs on TPUs and GPUs that are not here, by their compilers."""
