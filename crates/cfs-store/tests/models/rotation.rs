//! Rotation of segments: threads fill data segments and journal segments while checkpoints retire what is older, ticks
//! go on, and readers look for records that are in a lane or have just left it.

use std::sync::Arc;

use cfs_format::planted::Bug;
use cfs_format::{BLOCK_BYTES, SEGMENT_BYTES};
use cfs_seal::codec::Codec;
use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::thread;

use crate::Model;
use crate::support::Shape;
use crate::world::World;

/// Everything fills up.
pub const FILLING: Model = Model {
    name: "rotation",
    run: filling,
    seeds: 12,
    plants: &[(Bug::SealForgotten, 300)],
};

/// Nobody commits anything: the mark of durability alone takes the log to its next segment, while a checkpoint is made.
pub const IDLE: Model = Model {
    name: "idle-rotation",
    run: idle,
    seeds: 40,
    plants: &[(Bug::FollowerRetired, 40)],
};

/// Two of them fill a data segment.
const CONTENT_BYTES: usize = 900 << 10;
/// Three of them fill a journal segment.
const PADDING: usize = 600 << 10;

fn filling(world: &Arc<World>) {
    let mut threads = Vec::new();
    let writing = Arc::new(AtomicUsize::new(2));
    for writer in 1..=2_u64 {
        let (world, writing) = (Arc::clone(world), Arc::clone(&writing));
        threads.push(thread::spawn(move || {
            let shape = Shape {
                lane: writer as usize - 1,
                codec: Codec::None,
                padding: PADDING,
            };
            for round in 0..3 {
                let content = vec![(writer * 10 + round) as u8; CONTENT_BYTES];
                let done = world.put(writer, &content, shape);
                done.expect("a device without faults");
                world.read(writer);
                // What is synced is on the device before its segment is full.
                if world.chance(3) {
                    world.sync(writer).expect("a device without faults");
                }
            }
            writing.fetch_sub(1, Ordering::Relaxed);
        }));
    }
    let background = Arc::clone(world);
    threads.push(thread::spawn(move || {
        for _ in 0..2 {
            background
                .store
                .checkpoint()
                .expect("a device without faults");
            background.store.tick().expect("a device without faults");
        }
    }));
    let reader = Arc::clone(world);
    threads.push(thread::spawn(move || {
        while writing.load(Ordering::Relaxed) > 0 {
            reader.read(1);
            reader.read(2);
        }
    }));
    for thread in threads {
        thread.join().expect("a thread of the model");
    }
}

fn idle(world: &Arc<World>) {
    // Two commands, and the mark of the first flush, leave a single block of the first segment, fewer than a mark takes.
    // None replaces another one: the first tick would drop that with a command of its own.
    for (slot, blocks) in [(1, 251), (2, 254)] {
        let shape = Shape {
            padding: (blocks * BLOCK_BYTES) as usize - 400,
            ..Shape::default()
        };
        world
            .put(slot, &[slot as u8; 100], shape)
            .and_then(|()| world.sync(slot))
            .expect("a device without faults");
    }
    let in_log = world.store.stats().replay_bytes;
    let left = u64::from(SEGMENT_BYTES - 2 * BLOCK_BYTES) - in_log;
    assert!(left == u64::from(BLOCK_BYTES), "{left} bytes are left");
    // The first tick sees the newest command, the next one that nothing has come after it.
    world.store.tick().expect("a device without faults");
    let background = Arc::clone(world);
    let mut threads = vec![thread::spawn(move || {
        background.store.tick().expect("a device without faults");
    })];
    let checkpoints = Arc::clone(world);
    threads.push(thread::spawn(move || {
        let made = checkpoints.store.checkpoint();
        made.expect("a device without faults");
    }));
    for thread in threads {
        thread.join().expect("a thread of the model");
    }
    // What has been freed is used again, by the log among others.
    for round in 0..3 {
        let shape = Shape {
            padding: 900 << 10,
            ..Shape::default()
        };
        world
            .put(3, &[round; 5000], shape)
            .and_then(|()| world.sync(3))
            .expect("a device without faults");
    }
}
