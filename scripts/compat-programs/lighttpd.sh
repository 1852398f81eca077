command -v lighttpd >/dev/null || exit 127
mkdir -p w/cgi; seq 1 200000 > w/big.txt; printf '#!/bin/sh\necho "Content-Type: text/plain"; echo; echo "hello $QUERY_STRING"; seq 1 200\n' > w/cgi/a.sh; chmod +x w/cgi/a.sh
cat > l.conf <<T
server.document-root="$PWD/w"
server.port=16312
server.bind="127.0.0.1"
server.modules=("mod_cgi","mod_deflate","mod_accesslog")
accesslog.filename="$PWD/access"
server.errorlog="$PWD/err"
cgi.assign=(".sh"=>"/bin/sh")
deflate.mimetypes=("text/plain")
deflate.allowed-encodings=("gzip")
mimetype.assign=(".txt"=>"text/plain")
T
lighttpd -D -f l.conf 2>e & L=$!
for i in $(seq 100); do curl -s 127.0.0.1:16312/ >/dev/null; [ $? = 7 ] || break; sleep .1; done
for k in 1 2; do (for i in $(seq 60); do curl -s --compressed 127.0.0.1:16312/big.txt; curl -s "127.0.0.1:16312/cgi/a.sh?$k-$i"; done | sha256sum > o$k) & P="$P $!"; done; wait $P
cat o1 o2; kill $L; wait $L; echo $?
