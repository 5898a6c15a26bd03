//! Pins against reclaim: content that is stored again just when its last reference goes is found or stored anew, and
//! nobody who refers to a chunk ever misses it. Segments that are emptied meanwhile are used again.

use std::sync::Arc;

use cfs_format::planted::Bug;
use cfs_seal::codec::Codec;
use shuttle::thread;

use crate::Model;
use crate::support::Shape;
use crate::world::World;

pub const MODEL: Model = Model {
    name: "pins",
    run,
    seeds: 60,
    plants: &[(Bug::PinAfterLookup, 200), (Bug::StaleIndexEntry, 10)],
};

/// Two of them fill a segment.
const LARGE: usize = 900 << 10;

fn content(byte: u8, large: bool) -> Vec<u8> {
    vec![byte; if large { LARGE } else { 300 }]
}

fn run(world: &Arc<World>) {
    let large = world.chance(8);
    let shape = |lane| Shape {
        lane,
        codec: Codec::None,
        padding: 0,
    };
    let put = move |world: &World, slot: u64, byte: u8, lane: usize| {
        let done = world.put(slot, &content(byte, large), shape(lane));
        done.expect("a device without faults");
    };
    put(world, 1, b'x', 0);
    let gone = world.chance(2);
    if gone {
        put(world, 1, b'y', 0);
    }
    let mut threads = Vec::new();
    let mut spawn = |act: Box<dyn Fn(&World) + Send>| {
        let world = Arc::clone(world);
        threads.push(thread::spawn(move || act(&world)));
    };
    // The only reference goes, if it has not gone before, and comes back.
    spawn(Box::new(move |world| {
        if !gone {
            put(world, 1, b'y', 0);
        }
        put(world, 1, b'x', 0);
        world.sync(1).expect("a device without faults");
    }));
    // Others come and go, or there are none.
    if world.chance(2) {
        spawn(Box::new(move |world| {
            put(world, 2, b'x', 1);
            world.read(2);
            put(world, 2, b'z', 1);
            put(world, 2, b'x', 1);
        }));
    }
    spawn(Box::new(|world| {
        for _ in 0..2 {
            let made = world.store.make_room(u64::MAX);
            assert!(!made.expect("a device without faults"));
        }
    }));
    spawn(Box::new(|world| {
        world.store.tick().expect("a device without faults");
        world.read(1);
        world.read(2);
    }));
    for thread in threads {
        thread.join().expect("a thread of the model");
    }
    world.cut_power();
    // Nothing is pinned any more: what is dead goes.
    for _ in 0..2 {
        let made = world.store.make_room(u64::MAX);
        assert!(!made.expect("a device without faults"));
    }
    let chunks = world.store.stats().pool.chunk_count;
    assert!(chunks == 1, "{chunks} chunks after reclaim");
}
