use super::*;

/// The derivations are part of the format: a pool's content is lost if they change.
#[test]
fn golden_derivations() {
    let cluster = ClusterKey::from_bytes([1; 32]);
    let secret = DomainSecret::from_bytes([2; 32]);
    let file = FileKey::derive(&secret, &[3; 16]);
    let cipher = cluster.block_cipher(Purpose::Journal, Cipher::Aes256Gcm);
    let mut sealed = b"batch".to_vec();
    cipher.seal_in_place(cfs_format::SegmentSeq(4), 5, b"head", &mut sealed, 0);
    let parts: Vec<Vec<u8>> = vec![
        cluster.superblock_mac.to_vec(),
        cluster.segment_header_mac.to_vec(),
        cluster.wrap_domain_secret(DomainId(6), &secret).to_vec(),
        secret.fingerprint(b"content").0.to_vec(),
        secret.chunk_key(&[b"any parts"]).to_vec(),
        file.mask(7, 8, Fingerprint([9; 32])).to_vec(),
        sealed,
    ];
    let all = blake3::hash(&parts.concat());
    assert_eq!(
        all.to_hex().as_str(),
        "ec33a2e06e4c76c819a790cd3ca34fd68e03d5e4799f4d8d6b214e78871a150f"
    );
}

#[test]
fn no_two_purposes_share_a_key() {
    let cluster = ClusterKey::from_bytes([1; 32]);
    let purposes = [
        Purpose::RecordHeader,
        Purpose::Journal,
        Purpose::TableBlock,
        Purpose::Footer,
    ];
    let mut keys: Vec<[u8; 32]> = purposes
        .iter()
        .map(|purpose| *derive(purpose.context(), &cluster.key))
        .collect();
    keys.extend([
        *cluster.superblock_mac,
        *cluster.segment_header_mac,
        *cluster.domain_mask,
        *cluster.key,
    ]);
    let secret = DomainSecret::from_bytes([1; 32]);
    keys.extend([*secret.fingerprint, *secret.chunk, *secret.file]);
    let count = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), count);
}

#[test]
fn masks_depend_on_everything() {
    let secret = DomainSecret::from_bytes([2; 32]);
    let other = DomainSecret::from_bytes([3; 32]);
    let fingerprint = Fingerprint([9; 32]);
    let key = FileKey::derive(&secret, &[3; 16]);
    let masks = [
        key.mask(7, 8, fingerprint),
        key.mask(8, 8, fingerprint),
        key.mask(7, 7, fingerprint),
        FileKey::derive(&secret, &[4; 16]).mask(7, 8, fingerprint),
        FileKey::derive(&other, &[3; 16]).mask(7, 8, fingerprint),
    ];
    for (index, mask) in masks.iter().enumerate() {
        assert!(!masks[..index].contains(mask));
    }
    assert_eq!(key.unmask(7, 8, masks[0]), fingerprint);
}

#[test]
fn domain_secrets_survive_storing() {
    let cluster = ClusterKey::from_bytes([1; 32]);
    let secret = DomainSecret::from_bytes([2; 32]);
    let stored = cluster.wrap_domain_secret(DomainId(1), &secret);
    assert_ne!(stored, [2; 32]);
    assert_ne!(stored, cluster.wrap_domain_secret(DomainId(2), &secret));
    let found = cluster.unwrap_domain_secret(DomainId(1), &stored);
    assert_eq!(found.fingerprint(b"x"), secret.fingerprint(b"x"));
}

#[test]
fn secrets_are_not_printed() {
    let printed = format!(
        "{:?} {:?}",
        ClusterKey::from_bytes([171; 32]),
        DomainSecret::from_bytes([171; 32])
    );
    assert_eq!(printed, "ClusterKey(secret) DomainSecret(secret)");
}
