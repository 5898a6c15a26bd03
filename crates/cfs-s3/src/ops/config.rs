//! What is configured for buckets: policy, public access, ownership, encryption, CORS, logs, and who pays.

use std::sync::Arc;

use s3s::dto::{
    BucketLoggingStatus, CORSConfiguration, CORSRule, DeleteBucketCorsInput,
    DeleteBucketCorsOutput, DeleteBucketEncryptionInput, DeleteBucketEncryptionOutput,
    DeleteBucketOwnershipControlsInput, DeleteBucketOwnershipControlsOutput,
    DeleteBucketPolicyInput, DeleteBucketPolicyOutput, DeletePublicAccessBlockInput,
    DeletePublicAccessBlockOutput, GetBucketCorsInput, GetBucketCorsOutput,
    GetBucketEncryptionInput, GetBucketEncryptionOutput, GetBucketLoggingInput,
    GetBucketLoggingOutput, GetBucketOwnershipControlsInput, GetBucketOwnershipControlsOutput,
    GetBucketPolicyInput, GetBucketPolicyOutput, GetBucketPolicyStatusInput,
    GetBucketPolicyStatusOutput, GetBucketRequestPaymentInput, GetBucketRequestPaymentOutput,
    GetPublicAccessBlockInput, GetPublicAccessBlockOutput, ObjectOwnership, PartitionDateSource,
    Payer, PolicyStatus, PutBucketCorsInput, PutBucketCorsOutput, PutBucketEncryptionInput,
    PutBucketEncryptionOutput, PutBucketLoggingInput, PutBucketLoggingOutput,
    PutBucketOwnershipControlsInput, PutBucketOwnershipControlsOutput, PutBucketPolicyInput,
    PutBucketPolicyOutput, PutPublicAccessBlockInput, PutPublicAccessBlockOutput,
    ServerSideEncryption,
};
use s3s::{S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use super::{known_user, not_implemented};
use crate::acl::Acl;
use crate::buckets::BucketAt;
use crate::errors::{custom, from_fs};
use crate::face::{Face, blocking};
use crate::policy::{POLICY_BYTES_MAX, Policy, Scope};
use crate::records::name;

/// CORS rules of a bucket at most; S3's own limit.
const CORS_RULES_MAX: usize = 100;

/// Does something with the bucket that a request names.
macro_rules! with_bucket {
    ($face:expr, $input:expr, |$bucket:ident| $work:expr) => {{
        let (face, input) = ($face, $input);
        blocking(move || {
            let $bucket: BucketAt =
                face.bucket(&input.bucket, input.expected_bucket_owner.as_ref())?;
            let work = |face: &Arc<Face>| $work(face, input);
            work(&face)
        })
        .await
    }};
}

fn gone<T: Default>() -> S3Response<T> {
    S3Response::with_status(T::default(), http::StatusCode::NO_CONTENT)
}

/// Gives a bucket a policy.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn put_bucket_policy(
    face: Arc<Face>,
    request: S3Request<PutBucketPolicyInput>,
) -> S3Result<S3Response<PutBucketPolicyOutput>> {
    with_bucket!(face, request.input, |bucket| {
        |face: &Arc<Face>, input: PutBucketPolicyInput| {
            if input.policy.len() > POLICY_BYTES_MAX {
                return Err(s3_error!(MalformedPolicy, "the policy is too long"));
            }
            let policy = Policy::parse(&input.policy, Scope::Bucket(&bucket.name))
                .map_err(|error| s3_error!(MalformedPolicy, "{error}"))?;
            if !policy.denies_somebody(&|name| face.users.is_somebody(name)) {
                return Err(s3_error!(
                    MalformedPolicy,
                    "a denial names who is no user, account or role here"
                ));
            }
            if policy.is_public() && face.public_access(&bucket)?.block_public_policy == Some(true)
            {
                return Err(s3_error!(
                    AccessDenied,
                    "the bucket refuses public policies"
                ));
            }
            let mut put = vec![(name::POLICY.to_vec(), input.policy.into_bytes())];
            let mut delete = Vec::new();
            match input.confirm_remove_self_bucket_access {
                Some(true) => put.push((name::POLICY_BINDS_OWNER.to_vec(), Vec::new())),
                _ => delete.push(name::POLICY_BINDS_OWNER.to_vec()),
            }
            face.change_bucket(&bucket, put, delete)?;
            Ok(gone())
        }
    })
}

/// A bucket's policy.
///
/// # Errors
/// As S3 has them; `NoSuchBucketPolicy`.
pub(crate) async fn get_bucket_policy(
    face: Arc<Face>,
    request: S3Request<GetBucketPolicyInput>,
) -> S3Result<S3Response<GetBucketPolicyOutput>> {
    with_bucket!(face, request.input, |bucket| {
        |face: &Arc<Face>, _: GetBucketPolicyInput| {
            let text = face
                .fs
                .record(bucket.ino(), name::POLICY)
                .map_err(from_fs)?;
            let text = text.ok_or(S3ErrorCode::NoSuchBucketPolicy)?;
            Ok(S3Response::new(GetBucketPolicyOutput {
                policy: Some(String::from_utf8_lossy(&text).into_owned()),
            }))
        }
    })
}

/// Takes a bucket's policy.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn delete_bucket_policy(
    face: Arc<Face>,
    request: S3Request<DeleteBucketPolicyInput>,
) -> S3Result<S3Response<DeleteBucketPolicyOutput>> {
    with_bucket!(face, request.input, |bucket| {
        |face: &Arc<Face>, _: DeleteBucketPolicyInput| {
            let both = vec![name::POLICY.to_vec(), name::POLICY_BINDS_OWNER.to_vec()];
            face.change_bucket(&bucket, Vec::new(), both)?;
            Ok(gone())
        }
    })
}

/// Whether a bucket's policy or list lets in whoever asks.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn get_bucket_policy_status(
    face: Arc<Face>,
    request: S3Request<GetBucketPolicyStatusInput>,
) -> S3Result<S3Response<GetBucketPolicyStatusOutput>> {
    with_bucket!(face, request.input, |bucket| {
        |face: &Arc<Face>, _: GetBucketPolicyStatusInput| {
            let by_policy = face
                .policy(&bucket)?
                .is_some_and(|policy| policy.is_public());
            let is_public = by_policy || face.bucket_acl(&bucket)?.is_public();
            Ok(S3Response::new(GetBucketPolicyStatusOutput {
                policy_status: Some(PolicyStatus {
                    is_public: Some(is_public),
                }),
            }))
        }
    })
}

/// Says what a bucket does about access for all.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn put_public_access_block(
    face: Arc<Face>,
    request: S3Request<PutPublicAccessBlockInput>,
) -> S3Result<S3Response<PutPublicAccessBlockOutput>> {
    with_bucket!(face, request.input, |bucket| {
        |face: &Arc<Face>, input: PutPublicAccessBlockInput| {
            let config = input.public_access_block_configuration;
            face.put_config(&bucket, name::PUBLIC_ACCESS, &config)?;
            Ok(S3Response::new(PutPublicAccessBlockOutput::default()))
        }
    })
}

/// What a bucket does about access for all.
///
/// # Errors
/// As S3 has them; `NoSuchPublicAccessBlockConfiguration`.
pub(crate) async fn get_public_access_block(
    face: Arc<Face>,
    request: S3Request<GetPublicAccessBlockInput>,
) -> S3Result<S3Response<GetPublicAccessBlockOutput>> {
    with_bucket!(face, request.input, |bucket| {
        |face: &Arc<Face>, _: GetPublicAccessBlockInput| {
            let config = face.config(&bucket, name::PUBLIC_ACCESS)?;
            let config = config.ok_or_else(|| {
                custom(
                    "NoSuchPublicAccessBlockConfiguration",
                    http::StatusCode::NOT_FOUND,
                    "the bucket has no such configuration",
                )
            })?;
            Ok(S3Response::new(GetPublicAccessBlockOutput {
                public_access_block_configuration: Some(config),
            }))
        }
    })
}

/// Has a bucket do nothing about access for all.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn delete_public_access_block(
    face: Arc<Face>,
    request: S3Request<DeletePublicAccessBlockInput>,
) -> S3Result<S3Response<DeletePublicAccessBlockOutput>> {
    with_bucket!(face, request.input, |bucket| {
        |face: &Arc<Face>, _: DeletePublicAccessBlockInput| {
            face.delete_config(&bucket, name::PUBLIC_ACCESS)?;
            Ok(gone())
        }
    })
}

/// Says who owns new objects.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn put_bucket_ownership_controls(
    face: Arc<Face>,
    request: S3Request<PutBucketOwnershipControlsInput>,
) -> S3Result<S3Response<PutBucketOwnershipControlsOutput>> {
    with_bucket!(face, request.input, |bucket| {
        |face: &Arc<Face>, input: PutBucketOwnershipControlsInput| {
            let known = [
                ObjectOwnership::BUCKET_OWNER_ENFORCED,
                ObjectOwnership::BUCKET_OWNER_PREFERRED,
                ObjectOwnership::OBJECT_WRITER,
            ];
            match input.ownership_controls.rules.as_slice() {
                [rule] if known.contains(&rule.object_ownership.as_str()) => {}
                _ => return Err(S3ErrorCode::MalformedXML.into()),
            }
            let rule = &input.ownership_controls.rules[0].object_ownership;
            let owners = Acl::private(bucket.owner());
            if rule.as_str() == ObjectOwnership::BUCKET_OWNER_ENFORCED
                && face.bucket_acl(&bucket)?.grants != owners.grants
            {
                return Err(custom(
                    "InvalidBucketAclWithObjectOwnership",
                    http::StatusCode::BAD_REQUEST,
                    "the bucket's access control list grants something to others",
                ));
            }
            face.put_config(&bucket, name::OWNERSHIP, &input.ownership_controls)?;
            Ok(S3Response::new(PutBucketOwnershipControlsOutput::default()))
        }
    })
}

/// Who owns new objects.
///
/// # Errors
/// As S3 has them; `OwnershipControlsNotFoundError`.
pub(crate) async fn get_bucket_ownership_controls(
    face: Arc<Face>,
    request: S3Request<GetBucketOwnershipControlsInput>,
) -> S3Result<S3Response<GetBucketOwnershipControlsOutput>> {
    with_bucket!(face, request.input, |bucket| {
        |face: &Arc<Face>, _: GetBucketOwnershipControlsInput| {
            let controls = face.config(&bucket, name::OWNERSHIP)?;
            let controls = controls.ok_or(S3ErrorCode::OwnershipControlsNotFoundError)?;
            Ok(S3Response::new(GetBucketOwnershipControlsOutput {
                ownership_controls: Some(controls),
            }))
        }
    })
}

/// Forgets who owns new objects: who puts them.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn delete_bucket_ownership_controls(
    face: Arc<Face>,
    request: S3Request<DeleteBucketOwnershipControlsInput>,
) -> S3Result<S3Response<DeleteBucketOwnershipControlsOutput>> {
    with_bucket!(face, request.input, |bucket| {
        |face: &Arc<Face>, _: DeleteBucketOwnershipControlsInput| {
            face.delete_config(&bucket, name::OWNERSHIP)?;
            Ok(gone())
        }
    })
}

/// Says how new objects are encrypted: with the pool's keys, which all are, or under one that is named.
///
/// # Errors
/// As S3 has them; `KMS.NotFoundException`.
pub(crate) async fn put_bucket_encryption(
    face: Arc<Face>,
    request: S3Request<PutBucketEncryptionInput>,
) -> S3Result<S3Response<PutBucketEncryptionOutput>> {
    with_bucket!(face, request.input, |bucket| {
        |face: &Arc<Face>, input: PutBucketEncryptionInput| {
            let config = input.server_side_encryption_configuration;
            for rule in &config.rules {
                let wanted = rule.apply_server_side_encryption_by_default.as_ref();
                match wanted.map(|wanted| wanted.sse_algorithm.as_str()) {
                    Some(ServerSideEncryption::AES256) => {}
                    Some(ServerSideEncryption::AWS_KMS) => {
                        let name = wanted.and_then(|wanted| wanted.kms_master_key_id.as_deref());
                        if let Some(name) = name {
                            face.kept_key(name)?;
                        }
                    }
                    Some(_) => {
                        return Err(not_implemented("sealing twice (SSE-KMS with DSSE)"));
                    }
                    None => return Err(S3ErrorCode::MalformedXML.into()),
                }
            }
            face.put_config(&bucket, name::ENCRYPTION, &config)?;
            Ok(S3Response::new(PutBucketEncryptionOutput::default()))
        }
    })
}

/// How new objects are encrypted.
///
/// # Errors
/// As S3 has them; `ServerSideEncryptionConfigurationNotFoundError`.
pub(crate) async fn get_bucket_encryption(
    face: Arc<Face>,
    request: S3Request<GetBucketEncryptionInput>,
) -> S3Result<S3Response<GetBucketEncryptionOutput>> {
    with_bucket!(face, request.input, |bucket| {
        |face: &Arc<Face>, _: GetBucketEncryptionInput| {
            let config = face.config(&bucket, name::ENCRYPTION)?;
            let config =
                config.ok_or(S3ErrorCode::ServerSideEncryptionConfigurationNotFoundError)?;
            Ok(S3Response::new(GetBucketEncryptionOutput {
                server_side_encryption_configuration: Some(config),
            }))
        }
    })
}

/// Forgets what was said of encryption.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn delete_bucket_encryption(
    face: Arc<Face>,
    request: S3Request<DeleteBucketEncryptionInput>,
) -> S3Result<S3Response<DeleteBucketEncryptionOutput>> {
    with_bucket!(face, request.input, |bucket| {
        |face: &Arc<Face>, _: DeleteBucketEncryptionInput| {
            face.delete_config(&bucket, name::ENCRYPTION)?;
            Ok(gone())
        }
    })
}

fn is_rule(rule: &CORSRule) -> bool {
    let methods = ["GET", "PUT", "HEAD", "POST", "DELETE"];
    let has_one_star = |text: &String| text.matches('*').count() <= 1;
    !rule.allowed_methods.is_empty()
        && !rule.allowed_origins.is_empty()
        && rule
            .allowed_methods
            .iter()
            .all(|method| methods.contains(&method.as_str()))
        && rule.allowed_origins.iter().all(has_one_star)
        && rule.allowed_headers.iter().flatten().all(has_one_star)
}

/// Says which pages may use a bucket.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn put_bucket_cors(
    face: Arc<Face>,
    request: S3Request<PutBucketCorsInput>,
) -> S3Result<S3Response<PutBucketCorsOutput>> {
    with_bucket!(face, request.input, |bucket| {
        |face: &Arc<Face>, input: PutBucketCorsInput| {
            let config: CORSConfiguration = input.cors_configuration;
            let rules = &config.cors_rules;
            if rules.is_empty() || rules.len() > CORS_RULES_MAX || !rules.iter().all(is_rule) {
                return Err(s3_error!(
                    InvalidRequest,
                    "a rule of the configuration is none"
                ));
            }
            face.put_config(&bucket, name::CORS, &config)?;
            Ok(S3Response::new(PutBucketCorsOutput::default()))
        }
    })
}

/// Which pages may use a bucket.
///
/// # Errors
/// As S3 has them; `NoSuchCORSConfiguration`.
pub(crate) async fn get_bucket_cors(
    face: Arc<Face>,
    request: S3Request<GetBucketCorsInput>,
) -> S3Result<S3Response<GetBucketCorsOutput>> {
    with_bucket!(face, request.input, |bucket| {
        |face: &Arc<Face>, _: GetBucketCorsInput| {
            let config: Option<CORSConfiguration> = face.config(&bucket, name::CORS)?;
            let config = config.ok_or(S3ErrorCode::NoSuchCORSConfiguration)?;
            Ok(S3Response::new(GetBucketCorsOutput {
                cors_rules: Some(config.cors_rules),
            }))
        }
    })
}

/// Has no page use a bucket.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn delete_bucket_cors(
    face: Arc<Face>,
    request: S3Request<DeleteBucketCorsInput>,
) -> S3Result<S3Response<DeleteBucketCorsOutput>> {
    with_bucket!(face, request.input, |bucket| {
        |face: &Arc<Face>, _: DeleteBucketCorsInput| {
            face.delete_config(&bucket, name::CORS)?;
            Ok(gone())
        }
    })
}

/// Says where the access log of a bucket goes, or ends it. The owner alone may, and the policy of the bucket that takes the log has
/// to allow it.
///
/// # Errors
/// As S3 has them; `NotImplemented` for grants to others, which policies are for.
pub(crate) async fn put_bucket_logging(
    face: Arc<Face>,
    request: S3Request<PutBucketLoggingInput>,
) -> S3Result<S3Response<PutBucketLoggingOutput>> {
    let user = known_user(&request)?;
    with_bucket!(face, request.input, |bucket| {
        |face: &Arc<Face>, input: PutBucketLoggingInput| {
            if user.id != bucket.owner() && !user.is_root() {
                return Err(S3ErrorCode::AccessDenied.into());
            }
            let Some(mut config) = input.bucket_logging_status.logging_enabled else {
                face.delete_config(&bucket, name::LOGGING)?;
                return Ok(S3Response::new(PutBucketLoggingOutput::default()));
            };
            if config.target_grants.is_some() {
                return Err(not_implemented("grants of logs to others"));
            }
            let format = config.target_object_key_format.get_or_insert_default();
            if let Some(partitioned) = &format.partitioned_prefix {
                match partitioned.partition_date_source.as_ref() {
                    None => {}
                    Some(source) if source.as_str() == PartitionDateSource::DELIVERY_TIME => {}
                    Some(source) if source.as_str() == PartitionDateSource::EVENT_TIME => {
                        return Err(not_implemented("logs by the time of what they tell"));
                    }
                    Some(_) => return Err(S3ErrorCode::MalformedXML.into()),
                }
            } else {
                format.simple_prefix.get_or_insert_default();
            }
            let target = face.find_bucket(&config.target_bucket)?.ok_or_else(|| {
                s3_error!(
                    InvalidTargetBucketForLogging,
                    "there is no bucket {} to take the log",
                    config.target_bucket
                )
            })?;
            let of = (bucket.name.as_str(), bucket.owner());
            if !face.may_take_log(&target, &config.target_prefix, of)? {
                return Err(s3_error!(
                    AccessDenied,
                    "the policy of the bucket that is to take the log does not let logging.s3.amazonaws.com put it there"
                ));
            }
            let config = BucketLoggingStatus {
                logging_enabled: Some(config),
            };
            face.put_config(&bucket, name::LOGGING, &config)?;
            Ok(S3Response::new(PutBucketLoggingOutput::default()))
        }
    })
}

/// Where the access log of a bucket goes.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn get_bucket_logging(
    face: Arc<Face>,
    request: S3Request<GetBucketLoggingInput>,
) -> S3Result<S3Response<GetBucketLoggingOutput>> {
    with_bucket!(face, request.input, |bucket| {
        |face: &Arc<Face>, _: GetBucketLoggingInput| {
            let config: Option<BucketLoggingStatus> = face.config(&bucket, name::LOGGING)?;
            Ok(S3Response::new(GetBucketLoggingOutput {
                logging_enabled: config.and_then(|config| config.logging_enabled),
            }))
        }
    })
}

/// Who pays: nobody but the owner of the pool.
///
/// # Errors
/// As S3 has them.
pub(crate) async fn get_bucket_request_payment(
    face: Arc<Face>,
    request: S3Request<GetBucketRequestPaymentInput>,
) -> S3Result<S3Response<GetBucketRequestPaymentOutput>> {
    with_bucket!(face, request.input, |_bucket| {
        |_: &Arc<Face>, _: GetBucketRequestPaymentInput| {
            Ok(S3Response::new(GetBucketRequestPaymentOutput {
                payer: Some(Payer::from_static(Payer::BUCKET_OWNER)),
            }))
        }
    })
}
