"""The policy: a diffusion pipeline that inpaints, its rollouts and its weights."""
