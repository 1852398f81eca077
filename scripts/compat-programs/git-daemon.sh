[ -x /usr/lib/git-core/git-daemon ] || exit 127
export HOME=$PWD GIT_AUTHOR_DATE="2020-01-01T00:00:00Z" GIT_COMMITTER_DATE="2020-01-01T00:00:00Z"; git config --global user.email a; git config --global user.name a; git config --global init.defaultBranch main; git config --global safe.directory '*'
mkdir s; git init -q s/r; cd s/r; for i in $(seq 12); do seq $((i*90000)) | sha256sum > h$i; seq $i $((i+150000)) | rev > f$i; git add .; git commit -qm c$i; done; touch .git/git-daemon-export-ok; cd ../..
git daemon --listen=127.0.0.1 --port=18418 --base-path=$PWD/s --enable=receive-pack --reuseaddr >l 2>&1 & D=$!
for i in $(seq 50); do git ls-remote git://127.0.0.1:18418/r >/dev/null 2>&1 && break; sleep .1; done
for k in 1 2 3; do git clone -q git://127.0.0.1:18418/r c$k & git clone -q git://127.0.0.1:18418/r d$k; wait $!; git -C c$k rev-parse HEAD; git -C d$k fsck 2>/dev/null; echo $?; done
cd c1; git checkout -q -b n; seq 300000 > big; git add .; git commit -qm n; git push -q origin n; echo $?; cd ..; git -C s/r rev-parse n; kill $D; wait $D; echo $?
