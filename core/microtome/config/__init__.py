"""Configuration and command line: the only place that knows Hydra and OmegaConf."""
