//! Users: each has its buckets, and keys that can be taken.

use crate::pool::Pool;

#[test]
fn users_have_their_own_buckets() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let (alice, bob, root) = (served.user("alice"), served.user("bob"), served.root());
    alice.put("/alice", b"").is(200);
    alice.put("/alice/k", b"1").is(200);
    bob.put("/bob", b"").is(200);
    assert_eq!(alice.get("/").all("Name"), ["alice"]);
    assert_eq!(root.get("/").all("Name"), ["alice", "bob"]);
    for answer in [
        bob.get("/alice"),
        bob.get("/alice/k"),
        bob.put("/alice/k", b"2"),
        bob.delete("/alice/k"),
        bob.delete("/alice"),
        bob.send_with(
            "PUT",
            "/bob/k",
            &[],
            &[("x-amz-copy-source", "/alice/k")],
            b"",
        ),
    ] {
        answer.fails(403, "AccessDenied");
    }
    bob.put("/alice", b"").fails(409, "BucketAlreadyExists");
    alice.put("/alice", b"").is(200);
    let other = [("x-amz-acl", "public-read")];
    alice
        .send_with("PUT", "/alice", &[], &other, b"")
        .fails(409, "BucketAlreadyExists");
    assert_eq!(root.get("/alice/k").is(200).body, b"1");
    // What has a list is not made again without.
    alice.send_with("PUT", "/listed", &[], &other, b"").is(200);
    alice.put("/listed", b"").fails(409, "BucketAlreadyExists");
}

#[test]
fn keys_are_kept_and_can_be_taken() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let alice = served.user("alice");
    let (_, second) = served
        .users
        .create_key("alice", None, &mut |buf| crate::pool::fill(buf, 77))
        .expect("room");
    let second = served.client(&second);
    alice.put("/alice", b"").is(200);
    second.get("/alice").is(200);
    served
        .users
        .revoke_key(&alice.access_key_id)
        .expect("it is there");
    alice.get("/alice").fails(403, "InvalidAccessKeyId");
    let again = pool.power_cut(1).serve();
    let second = crate::client::Client {
        address: again.server.address(),
        ..second
    };
    second.get("/alice").is(200);
    again.users.remove("alice").expect("she is there");
    second.get("/alice").fails(403, "InvalidAccessKeyId");
    again.root().get("/alice").is(200);
    assert!(again.users.remove("root").is_err());
    let spaced = cfs_s3::NewUser {
        name: "no spaces".to_owned(),
        ..cfs_s3::NewUser::default()
    };
    assert!(again.users.add(spaced, &mut |_| {}).is_err());
}
