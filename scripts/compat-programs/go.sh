command -v go >/dev/null || exit 127
export GOCACHE=$PWD/gc GOPATH=$PWD/gp GOFLAGS=-mod=mod GO111MODULE=off GOTOOLCHAIN=local
cat > m.go <<T
package main
import ("fmt";"sync";"time";"net/http";"io";"net/http/httptest")
func main(){ s:=httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter,r *http.Request){fmt.Fprint(w,r.URL.Path)}))
 var wg sync.WaitGroup; r:=make([]int,50)
 for k:=0;k<50;k++{ wg.Add(1); go func(k int){defer wg.Done(); for i:=0;i<60;i++{ time.Sleep(20*time.Millisecond)
  x,e:=http.Get(fmt.Sprintf("%s/%d-%d",s.URL,k,i)); if e!=nil {fmt.Println(e);continue}; b,_:=io.ReadAll(x.Body); x.Body.Close(); for _,c:=range b {r[k]=(r[k]*31+int(c))%1000003}
  for j:=0;j<100000;j++ {r[k]=(r[k]*31+j)%1000003}}}(k)}
 wg.Wait(); fmt.Println(r)}
T
go build -p 2 -o m m.go; echo $?
./m
