//! The configuration file.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use lxcfs_user::config::{Config, Settings};

fuzz_target!(|text: &str| {
    if let Ok(settings) = Settings::parse_toml(Path::new("lxcfs.toml"), text) {
        let _ = settings.views();
        let _ = Config::new(&settings, Path::new("/"));
    }
});
