//! Opening chunks that are wanted together.

use std::collections::BTreeMap;
use std::sync::Arc;

use cfs_device::{Device, MemDevice};
use cfs_format::{DomainId, Fingerprint, SegmentId};
use cfs_seal::codec::Codec;
use cfs_store::Store;

use crate::support::{TestHost, apply, format, next, open};

const LEN: usize = 90_000;

fn opened(store: &Store, wanted: &[Fingerprint]) -> BTreeMap<usize, Vec<u8>> {
    let mut found = BTreeMap::new();
    // Memory that was used before.
    let room = |_| vec![0xee; 3];
    store.read_chunks(wanted, room, |index, content| {
        assert!(found.insert(index, content).is_none(), "each once");
    });
    found
}

/// Forty chunks of a lane lie in two segments that are full and one that is open.
#[test]
fn chunks_that_lie_side_by_side_are_read_at_once() {
    let device = Arc::new(MemDevice::new(64));
    let host = TestHost::start();
    format(&(Arc::clone(&device) as Arc<dyn Device>), &host);
    let store = open(Arc::clone(&device) as Arc<dyn Device>, host);
    let mut state = 3;
    let contents: Vec<Vec<u8>> = (0..40)
        .map(|_| (0..LEN).map(|_| next(&mut state) as u8).collect())
        .collect();
    let mut places = Vec::new();
    let mut wanted = Vec::new();
    for (slot, content) in contents.iter().enumerate() {
        let pin = store
            .put_chunk(0, DomainId::DEFAULT, Codec::None, content)
            .expect("stored");
        let new = pin.new_chunk();
        places.extend(new);
        wanted.push(*pin.fingerprint());
        let command = postcard::to_stdvec(&(slot as u64 + 1, *pin.fingerprint(), new));
        let command = command.expect("encodes");
        let mut txn = store.begin();
        apply(&mut txn, &command).expect("applies");
        txn.commit(&command).expect("committed");
    }
    store.sync().expect("synced");
    // In any order, and one that is nowhere.
    wanted.reverse();
    wanted.insert(7, Fingerprint([1; 32]));
    let whole = opened(&store, &wanted[..8]);
    assert_eq!(
        whole.keys().copied().collect::<Vec<_>>(),
        Vec::from_iter(0..7)
    );
    let full: Vec<_> = places
        .iter()
        .filter(|at| at.segment == places[0].segment)
        .collect();
    assert!(
        full.len() > 15,
        "{} chunks in the first segment",
        full.len()
    );

    device.set_faults(cfs_device::FaultPlan::default());
    let first: Vec<Fingerprint> = full.iter().rev().map(|at| at.fingerprint).collect();
    let found = opened(&store, &first);
    assert_eq!(device.counts().reads, 1);
    assert_eq!(found.len(), first.len());
    for (index, content) in &found {
        assert!(
            *content == contents[full.len() - 1 - index],
            "chunk {index}"
        );
    }
    let all = opened(&store, &wanted);
    assert_eq!(all.len(), 40);

    // One of them is damaged: the others are there, and it is not.
    let (segment, offset) = (SegmentId(full[4].segment.0), full[4].offset + 5000);
    device.flip_bit(segment, offset, 3);
    let found = opened(&store, &first);
    let lost = full.len() - 1 - 4;
    assert_eq!(found.len(), first.len() - 1);
    assert!(!found.contains_key(&lost));
}
