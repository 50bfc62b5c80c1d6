//! Whole conversations with the mux, in simulated time.
