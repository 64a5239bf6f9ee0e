"""The configuration that ships with microtome: the defaults, the tasks and the presets."""
