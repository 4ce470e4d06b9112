//! `bindgen MODULE.wasm FOLDER`: what the `wasm-bindgen` command does for browsers. As a member of this workspace it is
//! always of the version that the module was built with, and builds in a third of the command's time.

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [module, folder] = &arguments[..] else {
        eprintln!("usage: bindgen MODULE.wasm FOLDER");
        std::process::exit(2);
    };
    let mut bindgen = wasm_bindgen_cli_support::Bindgen::new();
    bindgen.input_path(module).out_name("wasm").typescript(true);
    if let Err(error) = bindgen.web(true).and_then(|bindgen| bindgen.generate(folder)) {
        eprintln!("{module}: {error:#}");
        std::process::exit(1);
    }
}
