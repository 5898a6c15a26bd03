//! Group commit: several threads commit and sync, one writes the log without flushing it, as the server does, and one
//! does the background work. What was acknowledged is there after a power cut; after a failed flush nothing is
//! acknowledged.

use std::sync::Arc;

use cfs_device::FaultPlan;
use cfs_format::planted::Bug;
use cfs_store::Health;
use shuttle::thread;

use crate::Model;
use crate::support::Shape;
use crate::world::World;

pub const MODEL: Model = Model {
    name: "group-commit",
    run,
    seeds: 60,
    plants: &[
        (Bug::NewestAcknowledged, 60),
        (Bug::LanesBeforeQueue, 2000),
        (Bug::MissingFlush, 10),
        (Bug::FailedFlushRetried, 20),
    ],
};

/// Commands of each thread.
const COMMANDS: u64 = 3;

fn run(world: &Arc<World>) {
    let fails = world.chance(3);
    if fails {
        world.device.set_faults(FaultPlan {
            failing_flushes: vec![1 + u64::from(world.chance(2)) + u64::from(world.chance(2))],
            ..FaultPlan::default()
        });
    }
    let mut threads = Vec::new();
    for committer in 1..=3_u64 {
        let world = Arc::clone(world);
        threads.push(thread::spawn(move || {
            let shape = Shape {
                lane: committer as usize % 2,
                ..Shape::default()
            };
            for round in 0..COMMANDS {
                let content = format!("content {round} of thread {committer}").repeat(20);
                let done = world
                    .put(committer, content.as_bytes(), shape)
                    .and_then(|()| world.sync(committer));
                if let Err(error) = done {
                    assert!(fails, "{error}");
                    assert!(matches!(world.store.health(), Health::ReadOnly { .. }));
                    return;
                }
            }
        }));
    }
    let logger = Arc::clone(world);
    threads.push(thread::spawn(move || {
        for _ in 0..COMMANDS {
            if let Err(error) = logger.store.write_log() {
                assert!(fails, "{error}");
            }
        }
    }));
    let background = Arc::clone(world);
    threads.push(thread::spawn(move || {
        for _ in 0..2 {
            if let Err(error) = background.store.tick() {
                assert!(fails, "{error}");
            }
        }
    }));
    for thread in threads {
        thread.join().expect("a thread of the model");
    }
    let flushes = world.device.counts().flushes;
    // Three for each checkpoint and each tick are more than there can be.
    assert!(fails || flushes <= 3 * COMMANDS + 9, "{flushes} flushes");
    world.cut_power();
    world.device.set_faults(FaultPlan::default());
}
