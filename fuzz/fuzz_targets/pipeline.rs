//! libFuzzer's bytes → [`lb_fuzz::pipeline`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lb_fuzz::pipeline::run(bytes));
