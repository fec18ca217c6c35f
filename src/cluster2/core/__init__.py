"""The pure part of cluster2: decisions and states as functions and values, without system calls and clocks."""
