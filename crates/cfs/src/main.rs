//! `cfs`: one binary for everything.
//!
//! Nothing happens before the passphrases are out of the environment and the command line is understood. A panic
//! anywhere ends the process at once: what was synced is safe, and a process whose invariants are broken must not
//! write on.

/// As `eprintln!`, but that it is no failure when nobody can be told: the log may lie on the disk that is full.
macro_rules! tell {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}
pub(crate) use tell;

mod admin;
mod bench;
mod bytes;
mod cli;
mod config;
mod daemon;
mod datadir;
mod failure;
mod host;
mod interrupt;
mod keys;
mod memory;
mod pool;
mod repair;
mod replica;
mod s3;
mod serve;
mod transfer;
mod watch;

use std::ffi::{OsStr, OsString};
use std::io::{IsTerminal, Read as _, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use crate::admin::client;
use crate::admin::protocol::{
    Answer, AnyPath, DebugTarget, Export, GcWay, GivenKey, Named, PolicyChange, Request, Reseal,
    SnapshotRequest, StreamRequest, Transfer, UserRequest, VolumeRequest,
};
use crate::admin::receiver::{self, PassedKey};
use crate::admin::reporter::end_if_unprinted;
use crate::admin::streams::{Bridge, Far};
use crate::cli::{
    AdminCommand, Cli, Command, DebugCommand, ExistingArgs, ExportArgs, FirstRunArgs, GivenKeyArgs,
    ImportArgs, InitArgs, IssuerCommand, KeyCommand, KmsCommand, MountArgs, ReceiveArgs,
    ReplicateArgs, ServerArgs, SnapshotArgs, SnapshotCommand, UserCommand, VolumeCommand,
};
use crate::daemon::Side;
use crate::datadir::{Contents, DataDir};
use crate::failure::{Code, Failure, Result};
use crate::keys::{Environment, KeyGiven};
use crate::pool::Use;
use crate::s3::S3At;
use crate::serve::{Serving, serve};

fn main() -> ExitCode {
    end_on_panic();
    // SAFETY: the process has just started and has one thread.
    let environment = unsafe { Environment::take() };
    let cli = Cli::from_command_line();
    match run(cli, environment) {
        Ok(code) => code,
        Err(failure) => {
            tell!("error: {failure}");
            ExitCode::from(failure.code.number())
        }
    }
}

/// What a process that serves logs if nothing else is said. The protocol's crate logs every refused request as an error.
const SERVING_LOG: &str = "info,s3s=off";

fn end_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}

fn run(cli: Cli, environment: Environment) -> Result<ExitCode> {
    let log = cli.log.as_deref();
    match cli.command {
        Command::Server(args) => {
            start_log(log, SERVING_LOG)?;
            server(args, environment)
        }
        Command::Mount(args) => mount(args, environment, log),
        Command::Import(args) => {
            start_log(log, "warn")?;
            import(args, environment)
        }
        Command::Export(args) => {
            start_log(log, "warn")?;
            export(args, environment)
        }
        Command::Init(args) => {
            start_log(log, "warn")?;
            init(args, environment)
        }
        Command::Send(args) => {
            start_log(log, "warn")?;
            send(
                path_at_name(&args.snapshot)?,
                args.from,
                Far::Output,
                args.existing,
                environment,
            )
        }
        Command::Receive(args) => {
            start_log(log, "warn")?;
            receive(args, environment)
        }
        Command::Replicate(args) => {
            start_log(log, "warn")?;
            replicate(args, environment)
        }
        Command::Admin { command } => {
            start_log(log, "warn")?;
            admin(command, environment)
        }
        Command::Repair(args) => {
            start_log(log, "warn")?;
            repair::run(args, environment)
        }
        Command::Bench(args) => {
            start_log(log, "warn")?;
            bench::run(&args)
        }
        Command::Debug { command } => {
            start_log(log, "warn")?;
            debug(command, environment)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::reflowed_command(), "cfs", &mut script);
            let mut out = std::io::stdout().lock();
            end_if_unprinted(out.write_all(&script).and_then(|()| out.flush()));
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { dir } => clap_mangen::generate_to(Cli::reflowed_command(), &dir)
            .map(|()| ExitCode::SUCCESS)
            .map_err(|e| Failure::host("write the manual pages into", &dir, &e)),
    }
}

fn start_log(filter: Option<&str>, default: &str) -> Result<()> {
    let filter = EnvFilter::try_new(filter.unwrap_or(default)).map_err(|error| {
        Failure::new(Code::Usage, format!("--log: {error}"))
            .hint("write for example info, or cfs_store=debug,info")
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .log_internal_errors(false)
        .init();
    Ok(())
}

fn server(args: ServerArgs, environment: Environment) -> Result<ExitCode> {
    allow_many_files();
    let serving = Serving {
        dir: DataDir::at(&args.data)?,
        mount: args.mount,
        mounting: args.mounting,
        s3: args.s3.unwrap_or(S3At::Default),
        s3_options: args.s3_options,
        pool: args.pool,
    };
    // SAFETY: no thread has been started yet.
    unsafe { serve(serving, environment, None) }?;
    Ok(ExitCode::SUCCESS)
}

fn mount(args: MountArgs, environment: Environment, log: Option<&str>) -> Result<ExitCode> {
    allow_many_files();
    let starting = match args.daemon {
        // SAFETY: no thread has been started yet.
        true => match unsafe { daemon::fork() }? {
            Side::Parent(code) => return Ok(code),
            Side::Child(starting) => Some(starting),
        },
        false => None,
    };
    start_log(log, SERVING_LOG)?;
    let serving = Serving {
        dir: DataDir::at(&args.data)?,
        mount: Some(absolute(&args.mount)?),
        mounting: args.mounting,
        s3: args.s3.unwrap_or(S3At::Off),
        s3_options: args.s3_options,
        pool: args.pool,
    };
    // SAFETY: no thread has been started yet.
    unsafe { serve(serving, environment, starting) }?;
    Ok(ExitCode::SUCCESS)
}

fn import(args: ImportArgs, environment: Environment) -> Result<ExitCode> {
    allow_many_files();
    let dir = DataDir::at(&args.data)?;
    let sources = args
        .sources
        .iter()
        .map(|source| from_here(source).map(|path| AnyPath::from(&*path)))
        .collect::<Result<_>>()?;
    let request = Request::Import(Transfer {
        sources,
        dest: AnyPath::from(&*args.dest),
        no_target_directory: args.transfer.no_target_directory,
        workers: args.transfer.workers,
    });
    transfer::check(&request)?;
    if let Some(option) = args.pool.first_for_opening() {
        client::refuse_when_served(&dir, option)?;
    }
    let usage = Use {
        budgets: args.pool.budgets,
        ..Use::default()
    };
    let given = KeyGiven::new(args.pool.key, environment);
    client::perform(&dir, request, args.transfer.json, |request, reporter| {
        let pool = pool::open_or_create(&dir, given, &args.pool.first_run, usage)?;
        client::on_own_pool(pool, request, reporter)
    })
}

fn export(args: ExportArgs, environment: Environment) -> Result<ExitCode> {
    allow_many_files();
    let request = Request::Export(Export {
        transfer: Transfer {
            sources: vec![AnyPath::from(&*args.source)],
            dest: AnyPath::from(&*from_here(&args.dest)?),
            no_target_directory: args.transfer.no_target_directory,
            workers: args.transfer.workers,
        },
        sync: args.sync,
    });
    transfer::check(&request)?;
    on_existing(args.existing, environment, request, args.transfer.json)
}

fn admin(command: AdminCommand, environment: Environment) -> Result<ExitCode> {
    let (args, request) = match command {
        AdminCommand::Status(args) => (args, Request::Status),
        AdminCommand::Df(args) => (args, Request::Df),
        AdminCommand::LsDomains(args) => (args, Request::LsDomains),
        AdminCommand::Fsck(args) => (args, Request::Fsck),
        AdminCommand::Scrub(args) => (args.report, Request::Scrub { rate: args.rate }),
        AdminCommand::Gc(args) => {
            let way = match (args.dry_run, args.now) {
                (true, _) => GcWay::DryRun,
                (_, true) => GcWay::Now,
                _ => GcWay::Background,
            };
            let reseal = args.reseal.map(|codec| match codec {
                Some(codec) => Reseal::Codec(codec.to_string()),
                None => Reseal::AsItIs,
            });
            let request = match args.recount {
                true => Request::Recount,
                false => Request::Gc { way, reseal },
            };
            (args.report, request)
        }
        AdminCommand::Snapshot { command } => return snapshot(command, environment),
        AdminCommand::Kms { command } => {
            let (report, request) = match command {
                KmsCommand::Add { name, report } => (report, UserRequest::AddKeptKey { name }),
                KmsCommand::List(report) => (report, UserRequest::KeptKeys),
            };
            (report, Request::User(request))
        }
        AdminCommand::Issuer { command } => {
            let (report, request) = match command {
                IssuerCommand::Set {
                    url,
                    keys,
                    audience: audiences,
                    report,
                } => {
                    let keys = issuer_keys(&keys)?;
                    let request = UserRequest::SetIssuer {
                        url,
                        keys,
                        audiences,
                    };
                    (report, request)
                }
                IssuerCommand::List(report) => (report, UserRequest::Issuers),
                IssuerCommand::Remove { url, report } => {
                    (report, UserRequest::RemoveIssuer { url })
                }
            };
            (report, Request::User(request))
        }
        AdminCommand::Clone(args) => {
            let request = VolumeRequest::Clone {
                named: path_at_name(&args.snapshot)?,
                path: pool_path(&args.path)?,
                quota_bytes: args.quota_bytes.unwrap_or(0),
                quota_inodes: args.quota_inodes.unwrap_or(0),
                owner: owner(),
            };
            (args.report, Request::Volume(request))
        }
        AdminCommand::Lifecycle(args) => {
            let request = Request::Lifecycle {
                bucket: args.bucket,
                dry_run: args.dry_run,
            };
            (args.report, request)
        }
        AdminCommand::Volume { command } => return volume(command, environment),
        AdminCommand::User { command } => {
            let (args, request) = match command {
                UserCommand::Add {
                    name,
                    key,
                    email,
                    own_domain,
                    report,
                } => {
                    let request = UserRequest::Add {
                        name,
                        key: given_key(key)?,
                        email,
                        own_domain,
                    };
                    (report, request)
                }
                UserCommand::List(report) => (report, UserRequest::List),
                UserCommand::Remove { name, report } => (report, UserRequest::Remove { name }),
            };
            (args, Request::User(request))
        }
        AdminCommand::Key {
            command:
                KeyCommand::Replica {
                    file,
                    store_only,
                    existing,
                },
        } => return replica_key(&file, store_only, existing, environment),
        AdminCommand::Key {
            command: KeyCommand::Create { name, key, report },
        } => {
            let key = given_key(key)?;
            (report, Request::User(UserRequest::CreateKey { name, key }))
        }
        AdminCommand::Key {
            command:
                KeyCommand::Revoke {
                    access_key_id,
                    report,
                },
        } => (
            report,
            Request::User(UserRequest::RevokeKey { access_key_id }),
        ),
        AdminCommand::Key {
            command:
                KeyCommand::ChangePassphrase {
                    new_passphrase_file,
                    existing,
                },
        } => {
            return client::change_passphrase(
                &DataDir::at(&existing.data)?,
                &existing.key,
                environment,
                new_passphrase_file.as_deref(),
            );
        }
    };
    on_existing(args.existing, environment, request, args.json)
}

/// The key that a user brings, if one does.
fn given_key(args: GivenKeyArgs) -> Result<Option<GivenKey>> {
    let (Some(access_key_id), Some(file)) = (args.access_key_id, args.secret_key_file) else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(&file).map_err(|e| Failure::host("read", &file, &e))?;
    let secret_access_key = text.lines().next().unwrap_or_default().to_owned();
    Ok(Some(GivenKey {
        access_key_id,
        secret_access_key,
    }))
}

/// The keys in a file, and no more of it than is refused as too long.
fn issuer_keys(file: &Path) -> Result<String> {
    let failed = |e: std::io::Error| Failure::host("read", file, &e);
    let mut keys = String::new();
    std::fs::File::open(file)
        .map_err(failed)?
        .take(128 << 10)
        .read_to_string(&mut keys)
        .map_err(failed)?;
    Ok(keys)
}

fn snapshot(command: SnapshotCommand, environment: Environment) -> Result<ExitCode> {
    let named = |path: &Path, name: &std::ffi::OsStr| -> Result<Named> {
        Ok(Named {
            path: pool_path(path)?,
            name: AnyPath::from(Path::new(name)),
            id: None,
        })
    };
    let of = |args: SnapshotArgs, request: fn(Named) -> SnapshotRequest| -> Result<_> {
        // Without an id there is a path.
        let path = args.path.unwrap_or_else(|| PathBuf::from("/"));
        let named = Named {
            id: args.id,
            ..named(&path, &args.name.or(args.named).unwrap_or_default())?
        };
        Ok((args.existing, request(named), false))
    };
    let (existing, request, json) = match command {
        SnapshotCommand::Create { snapshot, json } => {
            let name = snapshot.name.or(snapshot.named);
            let named = named(&snapshot.path, &name.unwrap_or_default())?;
            (snapshot.existing, SnapshotRequest::Create(named), json)
        }
        SnapshotCommand::Policy {
            path,
            policy,
            remove,
            report,
        } => {
            let request = SnapshotRequest::Policy {
                path: path.as_deref().map(pool_path).transpose()?,
                change: match policy {
                    Some(policy) => PolicyChange::Set(policy),
                    None if remove => PolicyChange::Remove,
                    None => PolicyChange::None,
                },
            };
            (report.existing, request, report.json)
        }
        SnapshotCommand::Delete(args) => of(args, SnapshotRequest::Delete)?,
        SnapshotCommand::Hold(args) => of(args, SnapshotRequest::Hold)?,
        SnapshotCommand::Release(args) => of(args, SnapshotRequest::Release)?,
        SnapshotCommand::List { path, with, report } => {
            let path = path.as_deref().map(pool_path).transpose()?;
            let with = with.iter().map(|name| AnyPath::from(Path::new(name)));
            let with = with.collect();
            let request = SnapshotRequest::List { path, with };
            (report.existing, request, report.json)
        }
        SnapshotCommand::Diff {
            path,
            name,
            to,
            report,
        } => {
            let request = SnapshotRequest::Diff {
                named: named(&path, &name)?,
                to: to.map(|name| AnyPath::from(Path::new(&name))),
                json: report.json,
            };
            (report.existing, request, report.json)
        }
        SnapshotCommand::Restore {
            path,
            name,
            below,
            delete,
            report,
        } => {
            let request = SnapshotRequest::Restore {
                named: named(&path, &name)?,
                below: below.iter().map(|path| AnyPath::from(&**path)).collect(),
                delete,
            };
            (report.existing, request, report.json)
        }
    };
    on_existing(existing, environment, Request::Snapshot(request), json)
}

fn init(args: InitArgs, environment: Environment) -> Result<ExitCode> {
    let dir = DataDir::at(&args.data)?;
    if !matches!(dir.contents()?, Contents::Nothing) {
        return Err(Failure::new(
            Code::Usage,
            format!("there is a pool in {} already", args.data.display()),
        )
        .hint("choose another directory; nothing was changed"));
    }
    let given = KeyGiven::new(args.pool.key, environment);
    let first_run = FirstRunArgs {
        replica_of: args.replica_of,
        ..args.pool.first_run
    };
    let usage = Use {
        budgets: args.pool.budgets,
        ..Use::default()
    };
    let pool = pool::open_or_create(&dir, given, &first_run, usage)?;
    pool::close(&pool.fs)?;
    Ok(ExitCode::SUCCESS)
}

fn replica_key(
    file: &Path,
    store_only: bool,
    existing: ExistingArgs,
    environment: Environment,
) -> Result<ExitCode> {
    let dir = DataDir::at(&existing.data)?;
    let given = KeyGiven::new(existing.key, environment);
    let answer = client::ask(
        &dir,
        Request::ReplicaKey { store_only },
        |request, reporter| {
            let pool = pool::open(&dir, given, Use::default())?;
            client::on_own_pool(pool, request, reporter)
        },
    )?;
    match answer {
        Answer::ReplicaKey { text } => replica::write(file, &text).map(|()| ExitCode::SUCCESS),
        _ => Err(Failure::new(
            Code::Failed,
            "the process that serves the pool gave another answer than asked for",
        )),
    }
}

/// The directory and the snapshot in `PATH@NAME`, divided at the last `@`; who has the pool looks whether it is another one.
fn path_at_name(given: &OsStr) -> Result<Named> {
    let bytes = given.as_bytes();
    let mut between = (1..bytes.len().saturating_sub(1)).rev();
    let Some(at) = between.find(|at| bytes[*at] == b'@') else {
        return Err(Failure::new(
            Code::Usage,
            format!("{} is not of the form PATH@NAME", given.display()),
        )
        .hint("PATH is that of a directory from the pool's root, NAME that of its snapshot"));
    };
    let part = |bytes| Path::new(OsStr::from_bytes(bytes));
    Ok(Named {
        path: pool_path(part(&bytes[..at]))?,
        name: AnyPath::from(part(&bytes[at + 1..])),
        id: None,
    })
}

/// The path of a directory in the pool. Commands have no working directory there, so it must start at the root.
fn pool_path(given: &Path) -> Result<AnyPath> {
    match given.is_absolute() {
        true => Ok(AnyPath::from(given)),
        false => Err(Failure::new(
            Code::Usage,
            format!("{} is no path from the pool's root", given.display()),
        )
        .hint(format!("write /{}", given.display()))),
    }
}

/// Owner and group of what is made for who asks.
fn owner() -> (u32, u32) {
    (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    )
}

/// Sends a snapshot to where `far` says.
fn send(
    named: Named,
    from: Option<OsString>,
    far: Far,
    existing: ExistingArgs,
    environment: Environment,
) -> Result<ExitCode> {
    let dir = DataDir::at(&existing.data)?;
    let waits = matches!(far, Far::Process(_));
    let bridge = Bridge::start(&dir, far)?;
    let request = Request::Stream(StreamRequest::Send {
        named,
        from: from.map(|name| AnyPath::from(Path::new(&name))),
        waits,
        socket: bridge.name(),
    });
    through(bridge, existing, environment, request)
}

fn replicate(args: ReplicateArgs, mut environment: Environment) -> Result<ExitCode> {
    let named = path_at_name(&args.snapshot)?;
    let receiver = match &args.target[..] {
        [directory] => {
            args.path.as_deref().map(pool_path).transpose()?;
            let dir = DataDir::at(Path::new(directory))?;
            let given = KeyGiven::of_target(args.target_key.into(), &mut environment);
            let key = PassedKey::of(&dir, given)?;
            receiver::start(&dir, args.path.as_deref(), key)?
        }
        [program, arguments @ ..] => {
            if let Some(option) = args.first_for_directory() {
                return Err(Failure::new(
                    Code::Usage,
                    format!("{option} has no effect: the target is a command"),
                )
                .hint(
                    "say it in the command, as in: -- ssh host cfs receive --data DIR /backup/home",
                ));
            }
            receiver::start_command(program, arguments)?
        }
        [] => unreachable!("the command line asks for a target"),
    };
    let far = Far::Process(receiver);
    send(named, None, far, args.existing, environment)
}

fn receive(args: ReceiveArgs, environment: Environment) -> Result<ExitCode> {
    let path = args.path.as_deref().map(pool_path).transpose()?;
    let dir = DataDir::at(&args.existing.data)?;
    let bridge = Bridge::start(&dir, Far::Input)?;
    let request = Request::Stream(StreamRequest::Receive {
        path,
        socket: bridge.name(),
    });
    through(bridge, args.existing, environment, request)
}

/// Does what needs a stream, and waits until all of that has been passed on.
fn through(
    bridge: Bridge,
    existing: ExistingArgs,
    environment: Environment,
    request: Request,
) -> Result<ExitCode> {
    let done = on_existing(existing, environment, request, false);
    match bridge.finish() {
        Ok(Some(ended)) if ended.has_failed() => Err(ended.failure(done)),
        Ok(ended) => {
            if let Some(ended) = ended {
                ended.tell();
            }
            done
        }
        // What the request met says more than what came of it on the way.
        Err(passing) => match done {
            Err(failure) if failure.code != Code::OtherSide => Err(failure),
            _ => Err(passing),
        },
    }
}

fn volume(command: VolumeCommand, environment: Environment) -> Result<ExitCode> {
    let (existing, request, json) = match command {
        VolumeCommand::Create {
            path,
            quota_bytes,
            quota_inodes,
            own_domain,
            existing,
        } => {
            let request = VolumeRequest::Create {
                path: pool_path(&path)?,
                quota_bytes: quota_bytes.unwrap_or(0),
                quota_inodes: quota_inodes.unwrap_or(0),
                own_domain,
                owner: owner(),
            };
            (existing, request, false)
        }
        VolumeCommand::Set {
            path,
            quota_bytes,
            quota_inodes,
            existing,
        } => {
            let request = VolumeRequest::Set {
                path: pool_path(&path)?,
                quota_bytes,
                quota_inodes,
            };
            (existing, request, false)
        }
        VolumeCommand::List(report) => (report.existing, VolumeRequest::List, report.json),
        VolumeCommand::Delete {
            path,
            recursive,
            existing,
        } => {
            let path = pool_path(&path)?;
            (existing, VolumeRequest::Delete { path, recursive }, false)
        }
    };
    on_existing(existing, environment, Request::Volume(request), json)
}

fn debug(command: DebugCommand, environment: Environment) -> Result<ExitCode> {
    let (target, existing) = match command {
        DebugCommand::Superblock(existing) => (DebugTarget::Superblock, existing),
        DebugCommand::Segment { segment, existing } => (DebugTarget::Segment { segment }, existing),
        DebugCommand::Journal(existing) => (DebugTarget::Journal, existing),
        DebugCommand::Index(existing) => (DebugTarget::Index, existing),
        DebugCommand::Inode { object, existing } => (DebugTarget::Inode { object }, existing),
        DebugCommand::Extents { object, existing } => (DebugTarget::Extents { object }, existing),
    };
    let dir = DataDir::at(&existing.data)?;
    client::debug(&dir, target, KeyGiven::new(existing.key, environment))
}

fn on_existing(
    existing: ExistingArgs,
    environment: Environment,
    request: Request,
    json: bool,
) -> Result<ExitCode> {
    let dir = DataDir::at(&existing.data)?;
    let given = KeyGiven::new(existing.key, environment);
    client::perform(&dir, request, json, |request, reporter| {
        let pool = client::open_for(&dir, given, &request)?;
        client::on_own_pool(pool, request, reporter)
    })
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| Failure::host("find", path, &e))
}

/// A path that means the same to a process with another working directory. What it ends with (`/`, `/.`) stays,
/// because copies depend on it.
fn from_here(path: &Path) -> Result<PathBuf> {
    use std::ffi::OsString;
    if path.is_absolute() {
        return Ok(path.to_path_buf());
    }
    let mut whole: OsString = std::env::current_dir()
        .map_err(|e| Failure::host("find", path, &e))?
        .into();
    whole.push("/");
    whole.push(path);
    Ok(whole.into())
}

/// Copies of deep trees hold many directories open; the usual soft limit of 1024 is for programs that use `select`.
fn allow_many_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(errno) = setrlimit(Resource::Nofile, limit) {
        tell!("notice: the limit of open files stays as it is: {errno}");
    }
}
