//! Bitswap 1.2.0: the message on the wire and the client and server machines.
