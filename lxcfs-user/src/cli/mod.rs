//! The command line: arguments as typed ([`args`]), made into a validated
//! [`Config`], and the commands that are not serving.

mod agent;
pub mod args;
mod attach;
mod doctor;
mod file_name;
mod legacy;
mod remote;
mod show;
mod sibling;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};

use crate::config::{Config, DEFAULT_FILE, Settings};
use crate::daemon;
use args::{Cli, Command, FileArgs, ServeArgs, WorkerArgs};
use lxcfs_holder::outside::Hello;

/// What to serve, and what to say about it first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serve {
    /// What the daemon shall do.
    pub config: Config,
    /// One line per option that is accepted without effect.
    pub notes: Vec<String>,
}

/// Runs the command line `arguments` (the program's name first) to its end.
#[must_use]
pub fn main(arguments: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            if error.kind() == clap::error::ErrorKind::ArgumentConflict {
                eprintln!(
                    "lxcfs: one mountpoint only, and a command must be the first word; see \
                     lxcfs --help"
                );
                return ExitCode::FAILURE;
            }
            // Prints to stdout and is no failure for --help and --version.
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    match run(cli, &arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lxcfs: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli, arguments: &[OsString]) -> Result<ExitCode> {
    match cli.command {
        None if arguments.len() <= 1 && !Path::new(DEFAULT_FILE).exists() => {
            // Nothing asked for, nothing configured: what C lxcfs did, too.
            eprintln!("{}", Cli::command().render_help());
            Ok(ExitCode::FAILURE)
        }
        None => {
            let here = std::env::current_dir().context("cannot tell the current directory")?;
            let Serve { config, notes } = serve(&cli.serve, &here)?;
            daemon::launch::launch(&config, &notes, arguments.get(1..).unwrap_or_default())?;
            Ok(ExitCode::FAILURE)
        }
        Some(Command::Worker(args)) => worker(args, arguments),
        Some(Command::Serve(args)) => {
            let here = std::env::current_dir().context("cannot tell the current directory")?;
            let Serve { config, notes } = serve(&args.serve, &here)?;
            let words = words_of_workers(arguments.get(2..).unwrap_or_default());
            daemon::server::run(
                &config,
                args.holder.map(|path| here.join(path)),
                &notes,
                words,
            )?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Show(args)) => show::show(&args),
        Some(Command::Upgrade(args)) => remote::upgrade(&args),
        Some(Command::Attach(args)) => attach::attach(&args),
        Some(Command::Detach(args)) => attach::detach(&args),
        Some(Command::Heal(args)) => attach::heal(&args),
        Some(Command::Doctor(args)) => doctor::doctor(&args),
        Some(Command::Status(args)) => remote::status(&args),
        Some(Command::LogLevel(args)) => remote::log_level(&args),
        Some(Command::Probe(args)) => remote::probe(&args),
        Some(Command::Agent(args)) => agent::agent(&args, agent::Sources::All),
        Some(Command::Nri(args)) => agent::agent(&args, agent::Sources::NriOnly),
        Some(Command::Hook(args)) => agent::hook(&args),
        Some(Command::Webhook(passed)) => sibling::exec("webhook", &passed.arguments),
        Some(Command::Manifests(passed)) => sibling::exec("manifests", &passed.arguments),
    }
}

fn worker(args: WorkerArgs, arguments: &[OsString]) -> Result<ExitCode> {
    let Serve { config, .. } = serve(&args.serve, &args.base_dir)?;
    let origin = match (args.join, args.server) {
        (Some(holder), Some(server)) => daemon::worker::Origin::Outside {
            holder,
            hello: Hello {
                server,
                crashed: args.crashed,
            },
        },
        _ => daemon::worker::Origin::Holder(daemon::launch::Typed {
            base_dir: args.base_dir,
            // Behind the program, `worker` and `--base-dir=`; see `launch`.
            words: arguments.get(3..).unwrap_or_default().to_vec(),
        }),
    };
    daemon::worker::run(&config, origin)?;
    Ok(ExitCode::SUCCESS)
}

/// The words of `lxcfs serve` that its workers read, too: all but `--holder`.
fn words_of_workers(words: &[OsString]) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        if text == "--holder" {
            let _its_value = words.next();
        } else if !text.starts_with("--holder=") {
            kept.push(word.clone());
        }
    }
    kept
}

/// The serving form's configuration, from its arguments and the file they name; relative
/// paths are taken from `base`.
///
/// # Errors
/// With a message that names the flag, or the file and the key.
pub fn serve(args: &ServeArgs, base: &Path) -> Result<Serve> {
    let (flags, notes) = args.settings().map_err(anyhow::Error::msg)?;
    let file = FileArgs {
        config: args.file.config.as_ref().map(|file| base.join(file)),
    };
    let settings = flags.over(file_settings(&file)?);
    let config = Config::new(&settings, base)?;
    Ok(Serve { config, notes })
}

/// The settings of the configuration file; the default one may be missing.
fn file_settings(args: &FileArgs) -> Result<Settings> {
    let file = args.config.as_deref().unwrap_or(Path::new(DEFAULT_FILE));
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Settings::parse_toml(file, &text)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && args.config.is_none() => {
            Ok(Settings::default())
        }
        Err(error) => Err(error)
            .with_context(|| format!("cannot read the configuration file {}", file.display())),
    }
}

#[cfg(test)]
mod generated;
#[cfg(test)]
mod tests;
