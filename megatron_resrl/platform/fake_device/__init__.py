"""A device that holds no numbers: shapes, memory, waits and traffic of a GPU on a machine without.

The host is real, the device is not. An operation whose tensors are all on the host runs; one that
touches the device is only worked out, so that mixed devices and wrong shapes raise, and what the
device would hold, move and compute is counted. Nothing outside this package and `platform` patches
other libraries; `install` does so for the whole process, which must be one of its own.
"""
