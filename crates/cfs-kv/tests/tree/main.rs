//! Tests of the tree from outside: against a model, with failing storage, with damaged bytes, with threads.

mod damage;
mod golden;
mod memory_store;
mod model;
mod random;
mod reads_and_writes;
mod threads;
