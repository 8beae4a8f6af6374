//! Serves the fixture engine: `serve-fixture hold KEY=VALUE…` becomes a holder (arguments of
//! `HolderOptions`), whose workers are this program again. `read` is a process full of readers,
//! `chaos` the whole experiment with figures (`cargo xtask chaos`).

use std::ffi::OsString;
use std::io::Read as _;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lxcfs_holder::HolderOptions;
use lxcfs_holder::outside::{self, Hello};
use lxcfs_tests::chaos;
use lxcfs_tests::fixture::{Fixture, build_name};
use lxcfs_tests::reader;
use lxcfs_tests::serve::Served;
use lxcfs_user::config::{Config, Settings};
use lxcfs_user::daemon::server;
use lxcfs_user::worker::{self, WorkerOptions};

lxcfs_user::install_slot_allocator!();

fn main() -> ExitCode {
    if let Some(code) = lxcfs_holder::entry() {
        return code;
    }
    let mut args = std::env::args_os().skip(1);
    let result = match args.next().as_deref().and_then(|word| word.to_str()) {
        Some("hold") => HolderOptions::from_args(args).and_then(|mut options| {
            if options.worker.is_empty() {
                options.worker = vec![OsString::new(), "worker".into()];
            }
            Err(lxcfs_holder::exec(&options).to_string())
        }),
        Some("worker") => join_if_told(args.collect()).and_then(run_worker),
        Some("serve") => serve(args.next().unwrap_or_default().into()),
        Some("read") => read(args.map(PathBuf::from).collect()),
        Some("waits") => waits(args.next().and_then(|word| word.to_str()?.parse().ok())),
        Some("chaos") => chaos(args.filter_map(|word| word.into_string().ok()).collect()),
        _ => Err("usage: serve-fixture hold KEY=VALUE… | worker | serve SOCKET | read DIR THREADS REST_USEC | waits KILLS | chaos KILLS PAUSE_MSEC STANDBY READERS".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("serve-fixture: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `lxcfs serve` with the fixture engine.
fn serve(holder: PathBuf) -> Result<(), String> {
    let settings = Settings {
        mountpoint: Some("/nowhere".into()),
        ..Settings::default()
    };
    let config = Config::new(&settings, Path::new("/")).map_err(|error| error.to_string())?;
    server::run(&config, Some(holder), &[], Vec::new()).map_err(|error| format!("{error:#}"))
}

/// Joins a holder if the arguments of a worker say so; returns whether they do.
fn join_if_told(args: Vec<OsString>) -> Result<bool, String> {
    let value = |name: &str| {
        let text: Vec<_> = args.iter().map(|word| word.to_string_lossy()).collect();
        let inside = text.iter().find_map(|word| {
            let value = word.strip_prefix(name)?.strip_prefix('=')?;
            Some(value.to_owned())
        });
        let behind = text.iter().position(|word| word == name);
        inside.or_else(|| Some(text.get(behind? + 1)?.clone().into_owned()))
    };
    let Some(holder) = value("--join") else {
        return Ok(false);
    };
    let crashed = value("--crashed").unwrap_or_default();
    let hello = Hello {
        server: value("--server").unwrap_or_default().parse()?,
        crashed: crashed
            .split(',')
            .map_while(|pid| pid.parse().ok())
            .collect(),
    };
    let joined = outside::join(Path::new(&holder), &hello, |_why| ());
    joined.map(|_given| true).map_err(|error| error.to_string())
}

fn run_worker(from_server: bool) -> Result<(), String> {
    if std::env::var_os("LXCFS_FIXTURE_DEBUG").is_some() {
        // Where the time of a take-over goes, for `serve-fixture waits`.
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(std::io::stderr)
            .init();
    }
    let engine = Arc::new(Fixture::from_env()?);
    let on_command = |text: &str| Ok(format!("heard {text}, {}", build_name()));
    let options = WorkerOptions {
        on_command: Some(Box::new(on_command)),
        from_server,
        ..Default::default()
    };
    worker::run(options, engine).map_err(|error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            text = format!("{text}: {inner}");
            cause = inner.source();
        }
        text
    })
}

extern "C" fn interrupted(_signal: i32) {}

fn read(args: Vec<PathBuf>) -> Result<(), String> {
    let [mount, threads, rest] = args.as_slice() else {
        return Err("read DIR THREADS REST_USEC".to_owned());
    };
    let number = |word: &PathBuf| {
        let parsed = word.to_string_lossy().parse::<usize>();
        parsed.map_err(|error| error.to_string())
    };
    let (threads, rest) = (number(threads)?, number(rest)?);
    let rest = Duration::from_micros(rest as u64);
    // A handler without SA_RESTART: signals must interrupt system calls, not this process.
    let action = nix::sys::signal::SigAction::new(
        nix::sys::signal::SigHandler::Handler(interrupted),
        nix::sys::signal::SaFlags::empty(),
        nix::sys::signal::SigSet::empty(),
    );
    // SAFETY: the handler does nothing.
    unsafe { nix::sys::signal::sigaction(nix::sys::signal::Signal::SIGUSR1, &action) }
        .map_err(|e| e.to_string())?;
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    std::thread::spawn(move || {
        let _closed = std::io::stdin().read(&mut [0; 1]);
        told.store(true, Ordering::Relaxed);
    });
    println!("ready");
    println!("{}", reader::run(mount, threads, rest, &stop).to_line());
    Ok(())
}

/// Prints how long readers wait, by load, with and without a standby.
fn waits(kills: Option<u32>) -> Result<(), String> {
    let kills = kills.ok_or("waits KILLS")?;
    let msec = Duration::from_millis(1);
    println!(
        "{kills} kills each; kill to serving p50 p99 | kill to a reader's next answer p50 p99"
    );
    for (name, option) in [("warm", "standby=1"), ("cold", "standby=0")] {
        for (what, readers, rest) in [
            ("1 reader", 0, msec),
            ("8 readers with pauses of 1 ms", 8, msec),
            ("64 readers without pauses", 64, Duration::ZERO),
        ] {
            let served = Served::with(&[option]);
            let seen = chaos::waits(&served, chaos::Load { readers, rest }, kills);
            let value = |all: &[Duration], percent| {
                let found = chaos::percentile(all, percent).unwrap_or_default();
                format!("{:.2} ms", found.as_secs_f64() * 1000.0)
            };
            println!(
                "{name}, {what}: {} {} | {} {}",
                value(&seen.serving, 50),
                value(&seen.serving, 99),
                value(&seen.answered, 50),
                value(&seen.answered, 99)
            );
        }
    }
    Ok(())
}

fn chaos(args: Vec<String>) -> Result<(), String> {
    let number = |index: usize, default: u64| {
        args.get(index).map_or(Ok(default), |word| {
            word.parse::<u64>().map_err(|e| e.to_string())
        })
    };
    let (kills, pause) = (number(0, 1000)?, number(1, 30)?);
    let threads = number(3, 64)?.div_ceil(4);
    // `chaos KILLS PAUSE_MSEC 0` keeps no standby: every start is cold.
    let standby = format!("standby={}", number(2, 1)?);
    let served = Served::with(&[&standby]);
    let outcome = chaos::run(
        &served,
        chaos::Plan {
            kills: kills as u32,
            pause: Duration::from_millis(pause),
            processes: 4,
            threads: threads as usize,
            hurt_readers: true,
        },
    );
    let seen = &outcome.seen;
    print!("{}", outcome.summary());
    if seen.errors + seen.wrong > 0 {
        Err(format!("first: {}", seen.first))
    } else {
        Ok(())
    }
}
