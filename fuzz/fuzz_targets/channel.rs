//! What holder, workers and clients of the control socket say to each other.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lxcfs_holder::channel::{Order, Report};
use lxcfs_holder::control::Request;

fuzz_target!(|text: &str| {
    // What is understood is said again in words that mean the same.
    if let Some(order) = Order::from_text(text) {
        assert_eq!(Order::from_text(&order.to_text()), Some(order));
    }
    if let Some(report) = Report::from_text(text) {
        assert_eq!(Report::from_text(&report.to_text()), Some(report));
    }
    if let Ok(request) = Request::from_text(text) {
        assert_eq!(Request::from_text(&request.to_text()), Ok(request));
    }
});
