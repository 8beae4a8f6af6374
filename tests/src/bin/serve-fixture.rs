//! Serves the fixture engine: `serve-fixture hold KEY=VALUE…` becomes a holder (arguments of
//! `HolderOptions`), whose workers are this program again.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;

use lxcfs_holder::HolderOptions;
use lxcfs_tests::fixture::Fixture;
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
        _ => Err("usage: serve-fixture hold mountpoint=DIR … | worker".to_owned()),
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
