//! Tests of the tree from outside: against a model, with failing storage, with damaged bytes.

mod memory_store;
mod model;
mod random;
