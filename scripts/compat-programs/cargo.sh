[ -x /usr/bin/cargo ] || exit 127
mkdir -p a/src; cat > a/Cargo.toml <<T
[package]
name="a"
version="0.1.0"
edition="2021"
[workspace]
T
python3 - <<T
import pathlib
p=pathlib.Path('a/src'); n=14
for k in range(n): (p/f'm{k}.rs').write_text('use std::collections::BTreeMap;\n'+''.join(f'pub fn f{i}(x:u64)->u64{{let mut m=BTreeMap::new();for j in 0..x{{m.insert(j,format!("{{}}",j+{i}));}}m.values().map(|s|s.len() as u64).sum()}}\n' for i in range(25)))
(p/'main.rs').write_text(''.join(f'mod m{k};\n' for k in range(n))+'fn main(){let mut s=0;'+''.join(f's+=m{k}::f{k}({k}+9);' for k in range(n))+'println!("{}",s);}\n')
T
cd a; for o in "" --release; do /usr/bin/cargo run -q --offline -j 2 $o 2>&1; done
