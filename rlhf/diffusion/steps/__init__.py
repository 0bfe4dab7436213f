"""Step rules: how one denoising step leads to the next, with its log-prob."""
