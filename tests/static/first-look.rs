//! The only program in the images of the container tests. Static, so that nothing but its own
//! instructions runs before its first look.
//!
//! `pause`: sleep. `look FILE…`: print the files. `watch FILE…`: print them at once, then read them
//! over and over, anew and by a kept descriptor, and report every read that fails.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let verb = arguments.next().unwrap_or_default();
    let files: Vec<String> = arguments.collect();
    match verb.as_str() {
        "pause" => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        "look" => look(&files),
        "watch" => {
            look(&files)?;
            watch(&files)
        }
        _ => panic!("pause, look FILE… or watch FILE…"),
    }
}

fn look(files: &[String]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for file in files {
        match fs::read_to_string(file) {
            Ok(text) => write!(out, "file {file}\n{text}")?,
            Err(error) => writeln!(out, "failed {file}: {error}")?,
        }
    }
    writeln!(out, "looked")
}

fn watch(files: &[String]) -> io::Result<()> {
    let kept: Vec<_> = files.iter().map(|file| (file, File::open(file))).collect();
    let mut bytes = [0; 65536];
    for round in 1_u64.. {
        for (file, kept) in &kept {
            let again = fs::read(file).map(|bytes| bytes.len());
            let same = match kept {
                Ok(kept) => kept.read_at(&mut bytes, 0),
                Err(error) => Err(error.kind().into()),
            };
            for read in [again, same] {
                match read {
                    Ok(0) => println!("failed {file}: empty"),
                    Ok(_) => {}
                    Err(error) => println!("failed {file}: {error}"),
                }
            }
        }
        if round % 3 == 0 {
            println!("round {round}");
        }
        io::stdout().flush()?;
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
