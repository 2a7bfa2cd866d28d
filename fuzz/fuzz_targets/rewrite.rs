//! libFuzzer's bytes → [`lb_fuzz::rewrite`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lb_fuzz::rewrite::run(bytes));
