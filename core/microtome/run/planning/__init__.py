"""A run resolved before any slide is opened: tilings, plugins, devices, CPUs."""
