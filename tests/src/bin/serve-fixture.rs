//! Serves the fixture engine: `serve-fixture hold KEY=VALUE…` becomes a holder (arguments of
//! `HolderOptions`), whose workers are this program again. `read` is a process full of readers,
//! `chaos` the whole experiment with figures (`cargo xtask chaos`).

use std::ffi::OsString;
use std::io::Read as _;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lxcfs_holder::HolderOptions;
use lxcfs_tests::chaos;
use lxcfs_tests::fixture::Fixture;
use lxcfs_tests::reader;
use lxcfs_tests::serve::Served;
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
        Some("worker") => run_worker(),
        Some("read") => read(args.map(PathBuf::from).collect()),
        Some("chaos") => chaos(args.filter_map(|word| word.into_string().ok()).collect()),
        _ => Err("usage: serve-fixture hold KEY=VALUE… | worker | read DIR THREADS | chaos KILLS PAUSE_MSEC STANDBY READERS".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("serve-fixture: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_worker() -> Result<(), String> {
    let engine = Arc::new(Fixture::from_env()?);
    let on_command = |text: &str| Ok(format!("heard {text}"));
    let options = WorkerOptions {
        on_command: Some(Box::new(on_command)),
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
    let [mount, threads] = args.as_slice() else {
        return Err("read DIR THREADS".to_owned());
    };
    let threads = threads
        .to_string_lossy()
        .parse::<usize>()
        .map_err(|e| e.to_string())?;
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
    println!("{}", reader::run(mount, threads, &stop).to_line());
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
