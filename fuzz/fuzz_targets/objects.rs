//! libFuzzer's bytes → [`lb_fuzz::objects`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lb_fuzz::objects::run(bytes));
