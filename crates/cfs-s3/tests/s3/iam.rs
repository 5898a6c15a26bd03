//! Accounts: users, groups and roles with policies, and credentials that end.

use crate::client::{Answer, Client};
use crate::pool::{Pool, Served};

/// Calls an action of IAM: its name, then names and values of parameters.
pub fn iam(client: &Client, action: &str, fields: &[(&str, &str)]) -> Answer {
    let fields = [&[("Action", action)], fields].concat();
    client.call("iam", "", &fields)
}

pub fn one(answer: &Answer, tag: &str) -> String {
    answer.all(tag).first().cloned().unwrap_or_default()
}

/// A user of the account of `head`, with a key.
pub fn member(served: &Served, head: &Client, name: &str) -> Client {
    iam(head, "CreateUser", &[("UserName", name)]).is(200);
    let key = iam(head, "CreateAccessKey", &[("UserName", name)]).is(200);
    Client {
        address: served.server.address(),
        access_key_id: one(&key, "AccessKeyId"),
        secret_access_key: one(&key, "SecretAccessKey"),
    }
}

pub fn allow(action: &str, resource: &str) -> String {
    format!(
        r#"{{"Statement": {{"Effect": "Allow", "Action": "{action}", "Resource": "{resource}"}}}}"#
    )
}

pub fn put_policy(client: &Client, kind: &str, name: &str, document: &str) -> Answer {
    let fields = [
        (format!("{kind}Name"), name),
        ("PolicyName".to_owned(), "p"),
        ("PolicyDocument".to_owned(), document),
    ];
    let fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| (name.as_str(), *value))
        .collect();
    iam(client, &format!("Put{kind}Policy"), &fields)
}

#[test]
fn users_of_an_account_may_do_what_policies_say() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let (alice, bob) = (served.user("alice"), served.user("bob"));
    alice.put("/alice", b"").is(200);
    alice.put("/alice/k", b"1").is(200);
    let carol = member(&served, &alice, "carol");
    // Nothing says that she may.
    carol.get("/").fails(403, "AccessDenied");
    carol.get("/alice/k").fails(403, "AccessDenied");
    carol.put("/carols", b"").fails(403, "AccessDenied");
    let all = allow("s3:*", "*");
    put_policy(&alice, "User", "Carol", &all).is(200);
    assert_eq!(carol.get("/").is(200).all("Name"), ["alice"]);
    assert_eq!(carol.get("/alice/k").is(200).body, b"1");
    // What she makes is the account's.
    carol.put("/carols", b"").is(200);
    alice.put("/carols/k", b"2").is(200);
    // Her policy opens nothing of another account, until that account does.
    bob.put("/bob", b"").is(200);
    carol.get("/bob").fails(403, "AccessDenied");
    let account = one(&iam(&alice, "GetUser", &[]), "UserId");
    for principal in [
        account.clone(),
        format!("arn:aws:iam::{account}:root"),
        format!("arn:aws:iam::{account}:user/carol"),
    ] {
        let grant = format!(
            r#"{{"Statement": {{"Effect": "Allow", "Principal": {{"AWS": "{principal}"}}, "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::bob"}}}}"#
        );
        bob.send("PUT", "/bob", &[("policy", "")], grant.as_bytes())
            .is(204);
        carol.get("/bob").is(200);
        bob.send("DELETE", "/bob", &[("policy", "")], b"").is(204);
        carol.get("/bob").fails(403, "AccessDenied");
    }
    // A denial is final, and an inactive key is none.
    let denial = all.replace("Allow", "Deny");
    put_policy(&alice, "User", "carol", &denial).is(200);
    carol.get("/alice/k").fails(403, "AccessDenied");
    put_policy(&alice, "User", "carol", &all).is(200);
    let key = carol.access_key_id.clone();
    let key = [("UserName", "carol"), ("AccessKeyId", key.as_str())];
    for (status, answer) in [("Inactive", 403), ("Active", 200)] {
        iam(
            &alice,
            "UpdateAccessKey",
            &[&key[..], &[("Status", status)]].concat(),
        )
        .is(200);
        carol.get("/alice/k").is(answer);
    }
    // All of it is kept.
    let again = pool.power_cut(1).serve();
    let carol = Client {
        address: again.server.address(),
        ..carol
    };
    assert_eq!(carol.get("/alice/k").is(200).body, b"1");
    // With the account its users go.
    again.users.remove("alice").expect("she is there");
    carol.get("/alice/k").fails(403, "InvalidAccessKeyId");
    again.assert_clean();
}

#[test]
fn who_may_change_accounts() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let (alice, bob) = (served.user("alice"), served.user("bob"));
    let carol = member(&served, &alice, "carol");
    let mallory = Client {
        secret_access_key: "wrong".to_owned(),
        ..alice.clone()
    };
    iam(&mallory, "ListUsers", &[]).fails(403, "SignatureDoesNotMatch");
    for action in ["ListUsers", "CreateAccessKey", "GetAccountSummary"] {
        iam(&carol, action, &[]).fails(403, "AccessDenied");
    }
    // What she may, she may with what it is said of.
    put_policy(
        &alice,
        "User",
        "carol",
        &allow("iam:*", "arn:aws:iam::*:user/carol"),
    )
    .is(200);
    iam(&carol, "CreateAccessKey", &[]).is(200);
    iam(&carol, "CreateUser", &[("UserName", "dave")]).fails(403, "AccessDenied");
    // Accounts do not see each other, and names differ in more than case.
    iam(&bob, "GetUser", &[("UserName", "carol")]).fails(404, "NoSuchEntity");
    iam(&bob, "CreateUser", &[("UserName", "carol")]).is(200);
    iam(&bob, "CreateUser", &[("UserName", "CAROL")]).fails(409, "EntityAlreadyExists");
    // What an account gives itself in root's, it does not have.
    put_policy(&alice, "User", "alice", &allow("*", "*")).fails(403, "AccessDenied");
    // Root gives it policies, which are for all buckets.
    bob.put("/bob", b"").is(200);
    alice.get("/bob").fails(403, "AccessDenied");
    put_policy(&served.root(), "User", "alice", &allow("s3:List*", "*")).is(200);
    alice.get("/bob").is(200);
    alice.put("/bob/k", b"1").fails(403, "AccessDenied");
    let denial = allow("s3:*", "*").replace("Allow", "Deny");
    put_policy(&served.root(), "User", "bob", &denial).is(200);
    bob.get("/bob").fails(403, "AccessDenied");
    // What is in use stays, and what is not understood is refused.
    iam(&alice, "DeleteUser", &[("UserName", "carol")]).fails(409, "DeleteConflict");
    iam(
        &alice,
        "CreateUser",
        &[("UserName", "x"), ("Tags.member.1", "y")],
    )
    .fails(400, "InvalidParameterValue");
    iam(&alice, "CreateOther", &[]).fails(501, "NotImplemented");
    put_policy(&alice, "User", "carol", "{}").fails(400, "MalformedPolicyDocument");
    // A form from nobody.
    let nobody = alice.send_unsigned("POST", "/", b"Action=ListUsers");
    assert_ne!(nobody.status, 200);
    served.assert_clean();
}

#[test]
fn groups_have_policies_in_common() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let alice = served.user("alice");
    let carol = member(&served, &alice, "carol");
    let (group, user) = (("GroupName", "readers"), ("UserName", "carol"));
    iam(&alice, "CreateGroup", &[group]).is(200);
    iam(&alice, "AddUserToGroup", &[group, user]).is(200);
    carol.get("/").fails(403, "AccessDenied");
    let policy = (
        "PolicyArn",
        "arn:aws:iam::aws:policy/AmazonS3ReadOnlyAccess",
    );
    iam(&alice, "AttachGroupPolicy", &[group, policy]).is(200);
    carol.get("/").is(200);
    carol.put("/new", b"").fails(403, "AccessDenied");
    let shown = iam(&alice, "GetGroup", &[group]).is(200);
    assert_eq!(shown.all("UserName"), ["carol"]);
    iam(&alice, "DeleteGroup", &[group]).fails(409, "DeleteConflict");
    iam(&alice, "RemoveUserFromGroup", &[group, user]).is(200);
    carol.get("/").fails(403, "AccessDenied");
    // Lists come in pages.
    for name in ["b", "A", "c"] {
        iam(&alice, "CreateGroup", &[("GroupName", name)]).is(200);
    }
    let first = iam(&alice, "ListGroups", &[("MaxItems", "2")]).is(200);
    assert_eq!(first.all("GroupName"), ["A", "b"]);
    let marker = one(&first, "Marker");
    let second = iam(&alice, "ListGroups", &[("Marker", &marker)]).is(200);
    assert_eq!(second.all("GroupName"), ["c", "readers"]);
    assert_eq!(one(&second, "IsTruncated"), "false");
}

/// Sends a request with credentials that end.
pub fn send(client: &Client, token: &str, method: &str, path: &str) -> Answer {
    client.send_with(method, path, &[], &[("x-amz-security-token", token)], b"")
}

pub fn session(served: &Served, answer: &Answer) -> (Client, String) {
    let client = Client {
        address: served.server.address(),
        access_key_id: one(answer, "AccessKeyId"),
        secret_access_key: one(answer, "SecretAccessKey"),
    };
    (client, one(answer, "SessionToken"))
}

#[test]
fn roles_are_taken_on_for_a_while() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let (alice, bob) = (served.user("alice"), served.user("bob"));
    alice.put("/alice", b"").is(200);
    let carol = member(&served, &alice, "carol");
    let dave = member(&served, &alice, "dave");
    let shown = iam(&alice, "GetUser", &[("UserName", "carol")]);
    let trust = format!(
        r#"{{"Statement": {{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {{"AWS": "{}"}}}}}}"#,
        one(&shown, "Arn")
    );
    let role = iam(
        &alice,
        "CreateRole",
        &[("RoleName", "r"), ("AssumeRolePolicyDocument", &trust)],
    );
    let arn = one(&role.is(200), "Arn");
    let assume = |client: &Client, more: &[(&str, &str)]| {
        let fields = [
            ("Action", "AssumeRole"),
            ("RoleArn", &arn),
            ("RoleSessionName", "s"),
        ];
        client.call("sts", "", &[&fields[..], more].concat())
    };
    for other in [&dave, &bob] {
        assume(other, &[]).fails(403, "AccessDenied");
    }
    assume(&carol, &[("DurationSeconds", "899")]).fails(400, "ValidationError");
    assume(&carol, &[("DurationSeconds", "3601")]).fails(400, "ValidationError");
    let (taken, token) = session(&served, &assume(&carol, &[]).is(200));
    send(&taken, &token, "GET", "/alice").fails(403, "AccessDenied");
    put_policy(&alice, "Role", "r", &allow("s3:*", "*")).is(200);
    send(&taken, &token, "GET", "/alice").is(200);
    send(&taken, &token, "PUT", "/taken").is(200);
    alice.put("/taken/k", b"it is the account's").is(200);
    // Neither without the token, nor with that of another, nor with more than was given.
    taken.get("/alice").fails(403, "InvalidAccessKeyId");
    let limit = allow("s3:ListBucket", "*");
    let (less, other) = session(&served, &assume(&carol, &[("Policy", &limit)]).is(200));
    send(&taken, &other, "GET", "/alice").fails(400, "InvalidToken");
    send(&less, &other, "GET", "/alice").is(200);
    send(&less, &other, "PUT", "/more").fails(403, "AccessDenied");
    let who = taken.call("sts", &token, &[("Action", "GetCallerIdentity")]);
    assert!(one(&who.is(200), "Arn").ends_with(":assumed-role/r/s"));
    // It outlives a restart, and ends by itself.
    let again = pool.power_cut(3).serve();
    let taken = Client {
        address: again.server.address(),
        ..taken
    };
    send(&taken, &token, "GET", "/alice").is(200);
    again.pass_days(1);
    send(&taken, &token, "GET", "/alice").fails(400, "ExpiredToken");
    again.assert_clean();
}

#[test]
fn credentials_of_a_user_end() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let alice = served.user("alice");
    alice.put("/alice", b"").is(200);
    // Her key alone is to do nothing.
    let policy = r#"{"Statement": {"Effect": "Deny", "Action": "s3:*", "Resource": "*",
        "Condition": {"Bool": {"sts:authentication": "false"}}}}"#;
    put_policy(&served.root(), "User", "alice", policy).is(200);
    alice.get("/alice").fails(403, "AccessDenied");
    let answer = alice.call("sts", "", &[("Action", "GetSessionToken")]);
    let (taken, token) = session(&served, &answer.is(200));
    send(&taken, &token, "GET", "/alice").is(200);
    taken
        .call("sts", &token, &[("Action", "GetSessionToken")])
        .fails(403, "AccessDenied");
    served.users.remove("alice").expect("she is there");
    send(&taken, &token, "GET", "/alice").fails(403, "InvalidAccessKeyId");
}

#[test]
fn lists_grant_to_addresses() {
    let pool = Pool::new(64);
    let served = pool.serve();
    let alice = served.user("alice");
    let email = Some("bob@example.com".to_owned());
    let add = |name: &str| {
        let new = cfs_s3::NewUser {
            name: name.to_owned(),
            email: email.clone(),
            ..cfs_s3::NewUser::default()
        };
        let mut random = |buf: &mut [u8]| crate::pool::fill(buf, 99);
        served.users.add(new, &mut random)
    };
    let bob = add("bob").expect("a new user");
    assert!(add("other").is_err(), "the address is taken");
    let bob = served.client(&bob.keys[0]);
    alice.put("/alice", b"").is(200);
    let grant = |to: &str| {
        let header = [("x-amz-grant-read", to)];
        alice.send_with("PUT", "/alice", &[("acl", "")], &header, b"")
    };
    grant("emailAddress=\"nobody@example.com\"").fails(400, "UnresolvableGrantByEmailAddress");
    bob.get("/alice").fails(403, "AccessDenied");
    grant("emailAddress=\"Bob@example.com\"").is(200);
    bob.get("/alice").is(200);
}
