command -v ghc >/dev/null || exit 127
for i in $(seq 12); do echo "module M$i where
import qualified Data.Map as M
f$i :: Int -> M.Map Int Int
f$i n = M.fromListWith (+) [(x \`mod\` (97+$i), x*$i) | x <- [1..n]]" > M$i.hs; done
(echo 'module Main where'; for i in $(seq 12); do echo "import M$i"; done; echo 'import Control.Concurrent
import qualified Data.Map as M
main = do { v <- newEmptyMVar; mapM_ (\g -> forkIO (putMVar v $! sum (M.elems (g 1200000)))) ['; for i in $(seq 12); do [ $i = 1 ] || printf ,; printf "f$i"; done; echo ']; r <- mapM (const (takeMVar v)) [1..12]; print (sum r) }') > Main.hs
ghc -v1 -j2 -O1 -threaded -rtsopts --make Main.hs 2>&1 | tail -1; ./Main +RTS -N2
