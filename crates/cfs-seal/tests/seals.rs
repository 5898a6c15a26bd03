//! What was sealed opens again; what was changed since, anywhere, does not.

use cfs_format::segment::{FooterEntry, MAGIC, SegmentHeader};
use cfs_format::superblock::{self, KeySlot, Superblock};
use cfs_format::{FORMAT_VERSION, SEGMENT_BYTES, SegmentSeq};
use cfs_seal::block::{BlockCipher, Cipher, Forged};
use cfs_seal::footer::{
    TRAILER_BYTES, decode_trailer, encode_trailer, open_footer, seal_footer, sealed_footer_len,
};
use cfs_seal::keys::{
    ClusterKey, MasterKey, MasterKeyError, WrongKey, check_superblock_checksum,
    check_superblock_mac, open_segment_header, render_key_file, seal_segment_header,
    seal_superblock, unwrap_cluster_key, wrap_cluster_key,
};
use zerocopy::{FromZeros, IntoBytes};

const CIPHERS: [Cipher; 2] = [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305];

fn slot() -> KeySlot {
    let mut slot = KeySlot::new_zeroed();
    slot.unlock = superblock::UNLOCK_PASSPHRASE;
    slot.argon2_memory_kib = 64.into();
    slot.argon2_passes = 1.into();
    slot.argon2_lanes = 2.into();
    slot.argon2_salt = [7; 16];
    slot.nonce = [8; 12];
    slot
}

/// Tells one cluster key from another by what it does.
fn same_key(left: &ClusterKey, right: &ClusterKey) -> bool {
    let block = seal_superblock(&superblock(), left);
    check_superblock_mac(&block, right)
}

fn superblock() -> Superblock {
    let mut superblock = Superblock::new_zeroed();
    superblock.magic = superblock::MAGIC;
    superblock.version = FORMAT_VERSION.into();
    superblock.segment_bytes = SEGMENT_BYTES.into();
    superblock.pool_uuid = [5; 16];
    superblock.generation = 77.into();
    superblock
}

#[test]
fn passphrase_unlocks() {
    let cluster = ClusterKey::from_bytes([9; 32]);
    let mut slot = slot();
    let master = MasterKey::from_passphrase(b"correct horse", &slot).unwrap();
    wrap_cluster_key(&master, &cluster, &mut slot);
    let again = MasterKey::from_passphrase(b"correct horse", &slot).unwrap();
    assert!(same_key(
        &unwrap_cluster_key(&again, &slot).unwrap(),
        &cluster
    ));
    let wrong = MasterKey::from_passphrase(b"correct horse ", &slot).unwrap();
    assert_eq!(unwrap_cluster_key(&wrong, &slot).unwrap_err(), WrongKey);

    for bit in 0..size_of::<KeySlot>() * 8 {
        let mut bytes: [u8; size_of::<KeySlot>()] = slot.as_bytes().try_into().unwrap();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let damaged: KeySlot = zerocopy::transmute!(bytes);
        assert_eq!(
            unwrap_cluster_key(&master, &damaged).unwrap_err(),
            WrongKey,
            "bit {bit}"
        );
    }
}

#[test]
fn argon2_parameters_are_bounded() {
    let check = |change: fn(&mut KeySlot)| {
        let mut slot = slot();
        change(&mut slot);
        assert!(matches!(
            MasterKey::from_passphrase(b"x", &slot).unwrap_err(),
            MasterKeyError::Parameters(_)
        ));
    };
    check(|slot| slot.argon2_memory_kib = u32::MAX.into());
    check(|slot| slot.argon2_memory_kib = 15.into());
    check(|slot| slot.argon2_memory_kib = 0.into());
    check(|slot| slot.argon2_passes = 0.into());
    check(|slot| slot.argon2_passes = 65.into());
    check(|slot| slot.argon2_lanes = 0.into());
    check(|slot| slot.argon2_lanes = u32::MAX.into());
}

#[test]
fn key_file_unlocks() {
    let content = render_key_file(&std::array::from_fn(|index| index as u8 * 8));
    assert_eq!(
        String::from_utf8(content.to_vec()).unwrap(),
        "cfs-key-1 0008101820283038404850586068707880889098a0a8b0b8c0c8d0d8e0e8f0f8\n"
    );
    let cluster = ClusterKey::from_bytes([9; 32]);
    let mut slot = slot();
    wrap_cluster_key(
        &MasterKey::from_key_file_bytes(&content).unwrap(),
        &cluster,
        &mut slot,
    );
    let trimmed = content.strip_suffix(b"\n").unwrap();
    let upper = content.to_ascii_uppercase();
    let upper = [&content[..10], &upper[10..]].concat();
    for form in [&content[..], trimmed, &upper] {
        let master = MasterKey::from_key_file_bytes(form).unwrap();
        assert!(same_key(
            &unwrap_cluster_key(&master, &slot).unwrap(),
            &cluster
        ));
    }
    let mut letter = content.to_vec();
    letter[30] = b'g';
    for form in [
        &b""[..],
        b"cfs-key-1 ",
        &content[1..],
        &content[..content.len() - 2],
        &[&content[..], b"\n"].concat(),
        &[&content[..], b" "].concat(),
        &letter,
    ] {
        assert!(matches!(
            MasterKey::from_key_file_bytes(form).unwrap_err(),
            MasterKeyError::KeyFile(_)
        ));
    }
}

#[test]
fn superblock_damage_is_seen_without_key_and_forgery_with_it() {
    let key = ClusterKey::from_bytes([1; 32]);
    let block = seal_superblock(&superblock(), &key);
    assert_eq!(check_superblock_checksum(&block), Ok(superblock()));
    assert!(check_superblock_mac(&block, &key));
    assert!(!check_superblock_mac(
        &block,
        &ClusterKey::from_bytes([2; 32])
    ));
    for bit in 0..block.len() * 8 {
        let mut damaged = block;
        damaged[bit / 8] ^= 1 << (bit % 8);
        let plain = check_superblock_checksum(&damaged).is_ok();
        assert!(!plain || !check_superblock_mac(&damaged, &key), "bit {bit}");
        assert_eq!(plain, bit / 8 >= superblock::MAC_OFFSET, "bit {bit}");
    }
    for len in [0, 100, 4095] {
        check_superblock_checksum(&block[..len]).unwrap_err();
        assert!(!check_superblock_mac(&block[..len], &key));
    }
}

#[test]
fn segment_headers_are_authenticated() {
    let key = ClusterKey::from_bytes([1; 32]);
    let mut header = SegmentHeader::new_zeroed();
    header.magic = MAGIC;
    header.seq = 12.into();
    let sealed = seal_segment_header(header, &key);
    let opened = open_segment_header(&sealed, &key).unwrap();
    header.mac = opened.mac;
    assert_eq!(opened, header);
    open_segment_header(&sealed, &ClusterKey::from_bytes([2; 32])).unwrap_err();
    for bit in 0..sealed.len() * 8 {
        let mut damaged = sealed;
        damaged[bit / 8] ^= 1 << (bit % 8);
        open_segment_header(&damaged, &key).unwrap_err();
    }
    for len in 0..sealed.len() {
        open_segment_header(&sealed[..len], &key).unwrap_err();
    }
}

#[test]
fn blocks_open_only_where_they_belong() {
    for cipher in CIPHERS {
        let block = BlockCipher::new(cipher, &[1; 32]);
        let (seq, offset, aad) = (SegmentSeq(5), 8192, &b"aad"[..]);
        let mut sealed = b"head".to_vec();
        sealed.extend_from_slice(b"the plain bytes");
        block.seal_in_place(seq, offset, aad, &mut sealed, 4);
        assert_eq!(&sealed[..4], b"head");
        let sealed = &sealed[4..];
        let open = |block: &BlockCipher, seq, offset, aad, sealed: &[u8]| {
            let mut buf = sealed.to_vec();
            block
                .open_in_place(seq, offset, aad, &mut buf)
                .map(|plain| plain.to_vec())
        };
        assert_eq!(
            open(&block, seq, offset, aad, sealed).unwrap(),
            b"the plain bytes"
        );
        let other = BlockCipher::new(cipher, &[2; 32]);
        assert_eq!(open(&other, seq, offset, aad, sealed), Err(Forged));
        assert_eq!(
            open(&block, SegmentSeq(6), offset, aad, sealed),
            Err(Forged)
        );
        assert_eq!(open(&block, seq, offset + 1, aad, sealed), Err(Forged));
        assert_eq!(open(&block, seq, offset, b"aae", sealed), Err(Forged));
        for len in 0..sealed.len() {
            assert_eq!(open(&block, seq, offset, aad, &sealed[..len]), Err(Forged));
        }
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&block, seq, offset, aad, &damaged), Err(Forged));
        }
    }
}

#[test]
fn footers() {
    let block = BlockCipher::new(Cipher::Aes256Gcm, &[1; 32]);
    let seq = SegmentSeq(5);
    for count in [0, 1, 30] {
        let entries: Vec<FooterEntry> = (0..count)
            .map(|index| {
                let mut entry = FooterEntry::new_zeroed();
                entry.offset = index.into();
                entry
            })
            .collect();
        let sealed = seal_footer(&entries, seq, 4096, &block);
        assert_eq!(sealed.len(), sealed_footer_len(entries.len()));
        assert_eq!(
            open_footer(&mut sealed.clone(), seq, 4096, &block).unwrap(),
            entries
        );
        open_footer(&mut sealed.clone(), seq, 8192, &block).unwrap_err();
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            open_footer(&mut damaged, seq, 4096, &block).unwrap_err();
        }
    }
    let mut odd = vec![0; 47];
    block.seal_in_place(seq, 4096, &[], &mut odd, 0);
    open_footer(&mut odd, seq, 4096, &block).unwrap_err();
}

#[test]
fn trailers() {
    let last = SEGMENT_BYTES - TRAILER_BYTES as u32 - sealed_footer_len(3) as u32;
    let trailer = decode_trailer(&encode_trailer(SegmentSeq(5), last, 3)).unwrap();
    assert_eq!(trailer.offset.get(), last);
    assert_eq!(trailer.entry_count.get(), 3);
    assert_eq!(trailer.seq.get(), 5);
    decode_trailer(&encode_trailer(SegmentSeq(5), last + 1, 3)).unwrap_err();
    decode_trailer(&encode_trailer(SegmentSeq(5), u32::MAX, 3)).unwrap_err();
    decode_trailer(&encode_trailer(SegmentSeq(5), 0, u32::MAX)).unwrap_err();
    decode_trailer(&[0; TRAILER_BYTES]).unwrap_err();
    decode_trailer(&encode_trailer(SegmentSeq(5), last, 3)[1..]).unwrap_err();
}
