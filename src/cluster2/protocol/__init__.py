"""Messages between the processes of a cluster, their encoding, and the client of the control socket."""
