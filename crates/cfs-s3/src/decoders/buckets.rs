//! Of buckets.

use http::header::{ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
use http::{Method, Request};
use s3s::dto::{
    AccessControlPolicy, BucketLifecycleConfiguration, BucketLoggingStatus, CORSConfiguration,
    ObjectLockConfiguration, OwnershipControls, PublicAccessBlockConfiguration,
    ServerSideEncryptionConfiguration,
};
use s3s::xml;

use super::asks::{NOW_MS, ask_policy};
use super::decode;
use super::objects::attr;
use crate::acl::{Acl, Grantee, Right, shown_grants};
use crate::buckets::BucketAt;
use crate::configs::{owner_of_new, parse, parse_policy, text_of};
use crate::cors;
use crate::expiry::expiration_of;
use crate::kms::{bare, default_key, key_of_record};
use crate::lifecycle::{DAY_MS, Rules, Subject, check};
use crate::locks::{by_default, check_config, mode_name, time_of};
use crate::logging::{is_partitioned, place_of, target_prefix};
use crate::records::{Bucket, Tags, Versioning, encode};
use crate::users::User;

fn bucket_at(record: Bucket) -> BucketAt {
    BucketAt {
        name: "bucket".to_owned(),
        attr: attr(0),
        record,
    }
}

pub(super) fn bucket_seeds() -> Vec<Vec<u8>> {
    let bucket = Bucket {
        owner: "id-of-alice".to_owned(),
        region: Some("eu-central-1".to_owned()),
        versioning: Some(Versioning::Enabled),
        volume: true,
        object_lock: false,
    };
    vec![encode(&bucket), encode(&Bucket::default())]
}

pub(super) fn bucket(record: &[u8]) -> bool {
    let Some(bucket) = decode::<Bucket>(record) else {
        return false;
    };
    bucket_at(bucket).owner();
    true
}

pub(super) fn acl_seeds() -> Vec<Vec<u8>> {
    let rights = [
        Right::FullControl,
        Right::Read,
        Right::Write,
        Right::ReadAcp,
        Right::WriteAcp,
    ];
    let user = || Grantee::User("id-of-bob".to_owned());
    let acl = Acl {
        owner: "id-of-alice".to_owned(),
        grants: rights
            .into_iter()
            .flat_map(|right| {
                [
                    (user(), right),
                    (Grantee::All, right),
                    (Grantee::Authenticated, right),
                ]
            })
            .collect(),
    };
    vec![encode(&acl), encode(&Acl::private("id-of-alice"))]
}

pub(super) fn acl(record: &[u8]) -> bool {
    let Some(acl) = decode::<Acl>(record) else {
        return false;
    };
    let user = User {
        id: "id-of-bob".to_owned(),
        ..User::default()
    };
    for right in [Right::FullControl, Right::Read, Right::WriteAcp] {
        for user in [None, Some(&user)] {
            acl.allows(user, right, false);
            acl.allows(user, right, true);
        }
    }
    acl.is_public();
    let shown = AccessControlPolicy {
        grants: Some(shown_grants(&acl, &|id| Some(id.to_owned()))),
        owner: None,
    };
    text_of(&shown).expect("memory takes any text");
    true
}

pub(super) fn policy_seeds() -> Vec<Vec<u8>> {
    [
        r#"{"Version": "2012-10-17", "Id": "id", "Statement": [
            {"Sid": "a", "Effect": "Allow", "Principal": {"AWS": ["arn:aws:iam:::user/alice", "id-of-bob"]}, "Action": "s3:Get*",
             "Resource": ["arn:aws:s3:::bucket/*", "arn:aws:s3::account:bucket/a?c"]},
            {"Effect": "Deny", "NotPrincipal": "*", "NotAction": ["s3:GetObject"], "NotResource": "arn:aws:s3:::bucket/secret/*"},
            {"Effect": "Allow", "Principal": {"Service": "logging.s3.amazonaws.com"}, "Action": "s3:PutObject"}]}"#,
        r#"{"Statement": {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::bucket", "Condition": {
            "StringLike": {"s3:prefix": ["public/*", "*"], "s3:ExistingObjectTag/key": "v*"},
            "IpAddress": {"aws:SourceIp": ["2001:db8::/32", "127.0.0.0/8"]},
            "NumericLessThanEquals": {"s3:max-keys": 10}, "Bool": {"aws:SecureTransport": true},
            "Null": {"s3:x-amz-acl": "false"}, "ForAllValues:StringNotEquals": {"s3:RequestObjectTag/key": ["x"]},
            "ArnLikeIfExists": {"aws:PrincipalArn": "arn:aws:iam::*:role/*"}}}}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

pub(super) fn policy(document: &[u8]) -> bool {
    let Ok(policy) = parse_policy(document, "bucket") else {
        return false;
    };
    policy.is_public();
    policy.denies_somebody(&|name| name.ends_with("alice"));
    ask_policy(&policy);
    true
}

/// A configuration in XML. What is shown of it says the same.
fn config<T>(text: &[u8]) -> Option<T>
where
    T: for<'xml> xml::Deserialize<'xml> + xml::Serialize,
{
    let config: T = parse(text).ok()?;
    let shown = text_of(&config).expect("memory takes any text");
    let again: T = parse(&shown).expect("what was just shown");
    // Of a time that was finer than milliseconds those are shown.
    let shown_again = text_of(&again).expect("memory takes any text");
    assert!(
        shown_again == shown,
        "a configuration changes when it is shown"
    );
    Some(config)
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub(super) fn public_access_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "<PublicAccessBlockConfiguration><BlockPublicAcls>true</BlockPublicAcls>\
         <IgnorePublicAcls>false</IgnorePublicAcls><BlockPublicPolicy>true</BlockPublicPolicy>\
         <RestrictPublicBuckets>true</RestrictPublicBuckets></PublicAccessBlockConfiguration>",
    ])
}

pub(super) fn public_access(text: &[u8]) -> bool {
    config::<PublicAccessBlockConfiguration>(text).is_some()
}

pub(super) fn ownership_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "<OwnershipControls><Rule><ObjectOwnership>BucketOwnerEnforced</ObjectOwnership></Rule></OwnershipControls>",
    ])
}

pub(super) fn ownership(text: &[u8]) -> bool {
    config::<OwnershipControls>(text)
        .and_then(owner_of_new)
        .is_some()
}

pub(super) fn encryption_seeds() -> Vec<Vec<u8>> {
    let config = |algorithm: &str, key: &str| {
        format!(
            "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault>\
             <SSEAlgorithm>{algorithm}</SSEAlgorithm>{key}</ApplyServerSideEncryptionByDefault>\
             <BucketKeyEnabled>true</BucketKeyEnabled></Rule></ServerSideEncryptionConfiguration>"
        )
    };
    let key = "<KMSMasterKeyID>arn:aws:kms:eu:account:key/name</KMSMasterKeyID>";
    vec![
        config("AES256", "").into_bytes(),
        config("aws:kms", key).into_bytes(),
        config("aws:kms", "").into_bytes(),
        vec![7; 32],
    ]
}

/// How a bucket has objects sealed, or the key of that.
pub(super) fn encryption(record: &[u8]) -> bool {
    let is_key = key_of_record(record).is_some();
    let Some(config) = config::<ServerSideEncryptionConfiguration>(record) else {
        return is_key;
    };
    if let Some(name) = default_key(config) {
        bare(&name);
    }
    true
}

pub(super) fn cors_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "<CORSConfiguration><CORSRule><ID>a</ID><AllowedOrigin>https://*.example</AllowedOrigin>\
         <AllowedMethod>GET</AllowedMethod><AllowedMethod>PUT</AllowedMethod><AllowedHeader>x-amz-*</AllowedHeader>\
         <ExposeHeader>ETag</ExposeHeader><MaxAgeSeconds>3000</MaxAgeSeconds></CORSRule>\
         <CORSRule><AllowedOrigin>*</AllowedOrigin><AllowedMethod>GET</AllowedMethod></CORSRule></CORSConfiguration>",
    ])
}

pub(super) fn cors(text: &[u8]) -> bool {
    let Some(config) = config::<CORSConfiguration>(text) else {
        return false;
    };
    for method in [Method::OPTIONS, Method::GET] {
        let request = Request::builder()
            .method(method)
            .uri("/bucket/key")
            .header(ORIGIN, "https://page.example")
            .header(ACCESS_CONTROL_REQUEST_METHOD, "GET")
            .header(ACCESS_CONTROL_REQUEST_HEADERS, "x-amz-date, x-amz-acl")
            .body(())
            .expect("a request");
        let wish = cors::wish(&request, None).expect("a page asks");
        for rule in &config.cors_rules {
            wish.is_granted_by(rule);
            cors::headers(rule, &wish);
        }
    }
    true
}

pub(super) fn lifecycle_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "<LifecycleConfiguration><Rule><ID>a</ID><Status>Enabled</Status><Filter><And><Prefix>logs/</Prefix>\
         <Tag><Key>k</Key><Value>v</Value></Tag><ObjectSizeGreaterThan>10</ObjectSizeGreaterThan>\
         <ObjectSizeLessThan>1000</ObjectSizeLessThan></And></Filter><Expiration><Days>2</Days></Expiration></Rule>\
         <Rule><ID>b</ID><Status>Enabled</Status><Prefix>logs/</Prefix><Expiration>\
         <ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>\
         <NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays>\
         <NewerNoncurrentVersions>2</NewerNoncurrentVersions></NoncurrentVersionExpiration>\
         <AbortIncompleteMultipartUpload><DaysAfterInitiation>3</DaysAfterInitiation>\
         </AbortIncompleteMultipartUpload></Rule></LifecycleConfiguration>",
        "<LifecycleConfiguration><Rule><ID>c</ID><Status>Enabled</Status><Filter><Tag><Key>k</Key><Value>v</Value></Tag>\
         </Filter><Expiration><Date>2030-01-01T00:00:00.000Z</Date></Expiration></Rule></LifecycleConfiguration>",
    ])
}

pub(super) fn lifecycle(text: &[u8]) -> bool {
    let Some(config) = config::<BucketLifecycleConfiguration>(text) else {
        return false;
    };
    let _ = check(config.clone(), || "new".to_owned());
    let tags: Tags = vec![("k".to_owned(), "v".to_owned())];
    for day_ms in [DAY_MS, 1, u64::MAX] {
        let rules = Rules::new(config.clone(), day_ms);
        rules.ask_for_tags();
        for ms in [0, NOW_MS, u64::MAX] {
            for size in [0, 11, u64::MAX] {
                let subject = Subject {
                    key: "logs/1",
                    size,
                    tags: &tags,
                };
                let mut dues = vec![
                    rules.current(&subject, ms),
                    rules.marker(subject.key, ms),
                    rules.upload(subject.key, ms),
                ];
                let noncurrent = |newer| rules.noncurrent(&subject, newer, ms);
                dues.extend([0, 2, usize::MAX].map(noncurrent));
                for due in dues.iter().flatten() {
                    expiration_of(due);
                }
            }
        }
    }
    true
}

pub(super) fn object_lock_seeds() -> Vec<Vec<u8>> {
    let config = |time: &str| {
        format!(
            "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>\
             <Mode>COMPLIANCE</Mode>{time}</DefaultRetention></Rule></ObjectLockConfiguration>"
        )
    };
    vec![
        config("<Days>30</Days>").into_bytes(),
        config("<Years>1</Years>").into_bytes(),
    ]
}

pub(super) fn object_lock(text: &[u8]) -> bool {
    let Some(config) = config::<ObjectLockConfiguration>(text) else {
        return false;
    };
    let _ = check_config(&config);
    let retention = config.rule.and_then(|rule| rule.default_retention);
    let locked = retention.and_then(|retention| by_default(&retention, NOW_MS));
    if let Some((mode, until)) = locked {
        mode_name(mode);
        time_of(until);
    }
    locked.is_some()
}

pub(super) fn logging_seeds() -> Vec<Vec<u8>> {
    texts(&[
        "<BucketLoggingStatus><LoggingEnabled><TargetBucket>logs</TargetBucket><TargetPrefix>of/</TargetPrefix>\
         </LoggingEnabled></BucketLoggingStatus>",
        "<BucketLoggingStatus><LoggingEnabled><TargetBucket>logs</TargetBucket><TargetObjectKeyFormat><PartitionedPrefix>\
         <PartitionDateSource>EventTime</PartitionDateSource></PartitionedPrefix></TargetObjectKeyFormat>\
         <TargetPrefix>of/</TargetPrefix></LoggingEnabled></BucketLoggingStatus>",
    ])
}

pub(super) fn logging(text: &[u8]) -> bool {
    let config = config::<BucketLoggingStatus>(text);
    let Some(enabled) = config.and_then(|config| config.logging_enabled) else {
        return false;
    };
    is_partitioned(enabled.target_object_key_format.as_ref());
    let source = bucket_at(Bucket::default());
    let place = place_of(&enabled, &source);
    let prefix = target_prefix(&place, (&source.name, source.owner()));
    assert_eq!(prefix, enabled.target_prefix, "a log goes somewhere else");
    true
}
