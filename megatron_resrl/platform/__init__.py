"""The machine: process groups, devices, number formats, and what a CPU needs."""
