//! Keeps the FUSE connection open and the worker alive.
